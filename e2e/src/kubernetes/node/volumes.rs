//! The volumes of a pod, as folders of the machine.
//!
//! What is written from objects of the API is written once: a pod that needs newer files is replaced.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, DownwardAPIVolumeFile, KeyToPath, PersistentVolume, PersistentVolumeClaim, Pod,
    Secret, ServiceAccount, Volume, VolumeProjection,
};
use kube::api::PostParams;
use kube::{Api, Client};

use super::container::Mounted;
use super::environment::{known_of_itself, required};

/// Mode of files that come from objects, unless the pod says otherwise.
const MODE: i32 = 0o644;
/// What a group of files may do with each of them.
const GROUP_READS: u32 = 0o040;

/// Files of one volume: path, content, mode.
type Files = Vec<(String, Vec<u8>, Option<i32>)>;

/// Fills the folders of all volumes of `pod` below `folder`; an error names what is not there yet.
pub(super) async fn fill(client: &Client, pod: &Pod, folder: &Path, address: &str) -> Result<()> {
    let spec = pod.spec.as_ref().context("a spec")?;
    let source = Source { client, pod, address };
    let group = spec.security_context.as_ref().and_then(|security| security.fs_group);
    let group = group.map(u32::try_from).transpose()?;
    for volume in spec.volumes.iter().flatten() {
        let at = folder.join(&volume.name);
        std::fs::create_dir_all(&at)?;
        let filled = source.fill(volume, &at, group).await;
        filled.with_context(|| format!("the volume `{}`", volume.name))?;
    }
    Ok(())
}

/// Where `container` sees the volumes of its pod, whose folders are below `folder`.
pub(super) async fn mounts(
    client: &Client,
    pod: &Pod,
    container: &Container,
    folder: &Path,
) -> Result<Vec<Mounted>> {
    let spec = pod.spec.as_ref().context("a spec")?;
    let mut mounts = Vec::new();
    for mount in container.volume_mounts.iter().flatten() {
        let volume = spec.volumes.iter().flatten().find(|volume| volume.name == mount.name);
        let volume = volume.with_context(|| format!("the volume `{}`", mount.name))?;
        let mut source = match &volume.persistent_volume_claim {
            Some(claim) => claimed(client, pod, &claim.claim_name).await?,
            None => folder.join(&mount.name),
        };
        if let Some(part) = mount.sub_path.as_deref().filter(|part| !part.is_empty()) {
            source.push(part);
            if !source.exists() {
                std::fs::create_dir_all(&source)?;
            }
        }
        let of_objects = volume.config_map.is_some() || volume.secret.is_some() || volume.projected.is_some();
        let read_only = mount.read_only == Some(true) || of_objects;
        mounts.push(Mounted { source, target: mount.mount_path.clone(), read_only });
    }
    // A mount below another comes after it.
    mounts.sort_by(|a, b| a.target.cmp(&b.target));
    Ok(mounts)
}

/// The folder that a claim is bound to.
async fn claimed(client: &Client, pod: &Pod, claim: &str) -> Result<PathBuf> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let volume = claims.get(claim).await?.spec.and_then(|spec| spec.volume_name);
    let volume = volume.with_context(|| format!("the claim `{claim}` is not bound"))?;
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let path = volumes.get(&volume).await?.spec.and_then(|spec| spec.host_path).map(|host| host.path);
    Ok(path.with_context(|| format!("the volume `{volume}` is no folder of this machine"))?.into())
}

struct Source<'a> {
    client: &'a Client,
    pod: &'a Pod,
    address: &'a str,
}

impl Source<'_> {
    async fn fill(&self, volume: &Volume, at: &Path, group: Option<u32>) -> Result<()> {
        if let Some(source) = &volume.config_map {
            let files = self.config_map(&source.name, source.items.as_deref(), source.optional).await?;
            return write(at, files, source.default_mode, group);
        }
        if let Some(source) = &volume.secret {
            let name = source.secret_name.as_deref().context("a name")?;
            let files = self.secret(name, source.items.as_deref(), source.optional).await?;
            return write(at, files, source.default_mode, group);
        }
        if let Some(source) = &volume.downward_api {
            let files = self.downward(source.items.as_deref())?;
            return write(at, files, source.default_mode, group);
        }
        if let Some(source) = &volume.projected {
            let mut files = Vec::new();
            for part in source.sources.iter().flatten() {
                files.extend(self.projected(part).await?);
            }
            return write(at, files, source.default_mode, group);
        }
        if let Some(claim) = &volume.persistent_volume_claim {
            let folder = claimed(self.client, self.pod, &claim.claim_name).await?;
            return open_to(&folder, group);
        }
        if volume.empty_dir.is_some() {
            return open_to(at, group);
        }
        bail!("its kind is not played: {volume:?}")
    }

    async fn projected(&self, part: &VolumeProjection) -> Result<Files> {
        if let Some(source) = &part.config_map {
            return self.config_map(&source.name, source.items.as_deref(), source.optional).await;
        }
        if let Some(source) = &part.secret {
            return self.secret(&source.name, source.items.as_deref(), source.optional).await;
        }
        if let Some(source) = &part.downward_api {
            return self.downward(source.items.as_deref());
        }
        let source = part.service_account_token.as_ref().context("its source is not played")?;
        let token = self.token(source.audience.clone(), source.expiration_seconds).await?;
        Ok(vec![(source.path.clone(), token.into_bytes(), None)])
    }

    async fn config_map(
        &self,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: Option<bool>,
    ) -> Result<Files> {
        let found = self.api::<ConfigMap>().get_opt(name).await?;
        let map = required(found, optional, name)?;
        let text = map.data.into_iter().flatten().map(|(key, value)| (key, value.into_bytes()));
        let binary = map.binary_data.into_iter().flatten().map(|(key, value)| (key, value.0));
        chosen(text.chain(binary).collect(), items, optional)
    }

    async fn secret(&self, name: &str, items: Option<&[KeyToPath]>, optional: Option<bool>) -> Result<Files> {
        let secret = required(self.api::<Secret>().get_opt(name).await?, optional, name)?;
        chosen(
            secret.data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect(),
            items,
            optional,
        )
    }

    fn downward(&self, items: Option<&[DownwardAPIVolumeFile]>) -> Result<Files> {
        let file = |item: &DownwardAPIVolumeFile| {
            let field = item.field_ref.as_ref().context("a field; resources are not played")?;
            let value = match field.field_path.as_str() {
                "metadata.labels" => listed(self.pod.metadata.labels.iter().flatten()),
                "metadata.annotations" => listed(self.pod.metadata.annotations.iter().flatten()),
                _ => known_of_itself(self.pod, field, self.address)?,
            };
            Ok((item.path.clone(), value.into_bytes(), item.mode))
        };
        items.unwrap_or_default().iter().map(file).collect()
    }

    async fn token(&self, audience: Option<String>, expiration_seconds: Option<i64>) -> Result<String> {
        let account = self.pod.spec.as_ref().and_then(|spec| spec.service_account_name.as_deref());
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: audience.into_iter().collect(),
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".to_owned()),
                    kind: Some("Pod".to_owned()),
                    name: self.pod.metadata.name.clone(),
                    uid: self.pod.metadata.uid.clone(),
                }),
                expiration_seconds,
            },
            ..TokenRequest::default()
        };
        let accounts = self.api::<ServiceAccount>();
        let answer = accounts
            .create_token_request(account.unwrap_or("default"), &PostParams::default(), &request)
            .await?;
        Ok(answer.status.context("a token")?.token)
    }

    fn api<T>(&self) -> Api<T>
    where
        T: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        T::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), self.pod.metadata.namespace.as_deref().unwrap_or_default())
    }
}

fn listed<'a>(map: impl Iterator<Item = (&'a String, &'a String)>) -> String {
    map.map(|(key, value)| format!("{key}={value:?}\n")).collect()
}

/// All keys, or those that `items` names, where it wants them.
fn chosen(all: Vec<(String, Vec<u8>)>, items: Option<&[KeyToPath]>, optional: Option<bool>) -> Result<Files> {
    let Some(items) = items else {
        return Ok(all.into_iter().map(|(key, value)| (key, value, None)).collect());
    };
    let mut files = Vec::new();
    for item in items {
        match all.iter().find(|(key, _)| *key == item.key) {
            Some((_, value)) => files.push((item.path.clone(), value.clone(), item.mode)),
            None if optional == Some(true) => {}
            None => bail!("there is no key `{}`", item.key),
        }
    }
    Ok(files)
}

fn write(at: &Path, files: Files, default_mode: Option<i32>, group: Option<u32>) -> Result<()> {
    for (path, content, mode) in files {
        let path = at.join(path);
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        std::fs::write(&path, content)?;
        let mut mode = u32::try_from(mode.or(default_mode).unwrap_or(MODE))?;
        if group.is_some() {
            mode |= GROUP_READS;
        }
        chown(&path, None, group)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Lets the pod write in the folder.
fn open_to(folder: &Path, group: Option<u32>) -> Result<()> {
    std::fs::create_dir_all(folder)?;
    chown(folder, None, group)?;
    let mode = if group.is_some() { 0o2775 } else { 0o777 };
    Ok(std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode))?)
}
