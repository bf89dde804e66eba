//! The environment of a container, and what its pod may know of itself.

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, ObjectFieldSelector, Pod, Secret};
use kube::{Api, Client};

/// The environment of `container`, in order; an error names what is not there yet.
pub(super) async fn environment(
    client: &Client,
    pod: &Pod,
    container: &Container,
    address: &str,
) -> Result<Vec<(String, String)>> {
    let mut all = vec![
        ("KUBERNETES_SERVICE_HOST".to_owned(), "10.96.0.1".to_owned()),
        ("KUBERNETES_SERVICE_PORT".to_owned(), "443".to_owned()),
        ("KUBERNETES_SERVICE_PORT_HTTPS".to_owned(), "443".to_owned()),
    ];
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(source) = &from.config_map_ref {
            let found = maps(client, pod).get_opt(&source.name).await?;
            for (key, value) in required(found, source.optional, &source.name)?.data.unwrap_or_default() {
                all.push((format!("{prefix}{key}"), value));
            }
        }
        if let Some(source) = &from.secret_ref {
            let found = secrets(client, pod).get_opt(&source.name).await?;
            for (key, value) in required(found, source.optional, &source.name)?.data.unwrap_or_default() {
                all.push((format!("{prefix}{key}"), String::from_utf8(value.0)?));
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match &variable.value_from {
            Some(source) => sourced(client, pod, source, address).await,
            None => Ok(Some(expanded(variable.value.as_deref().unwrap_or_default(), &all))),
        };
        if let Some(value) = value.with_context(|| format!("the variable `{}`", variable.name))? {
            all.push((variable.name.clone(), value));
        }
    }
    Ok(all)
}

async fn sourced(client: &Client, pod: &Pod, source: &EnvVarSource, address: &str) -> Result<Option<String>> {
    if let Some(field) = &source.field_ref {
        return known_of_itself(pod, field, address).map(Some);
    }
    if let Some(key) = &source.config_map_key_ref {
        let found = required(maps(client, pod).get_opt(&key.name).await?, key.optional, &key.name)?;
        return optional(found.data.and_then(|mut data| data.remove(&key.key)), key.optional, &key.key);
    }
    if let Some(key) = &source.secret_key_ref {
        let found = required(secrets(client, pod).get_opt(&key.name).await?, key.optional, &key.name)?;
        let value = found.data.and_then(|mut data| data.remove(&key.key));
        let value = value.map(|value| String::from_utf8(value.0)).transpose()?;
        return optional(value, key.optional, &key.key);
    }
    bail!("its source is not played: {source:?}");
}

/// What the downward API tells.
pub(super) fn known_of_itself(pod: &Pod, field: &ObjectFieldSelector, address: &str) -> Result<String> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref().context("a spec")?;
    let value = match field.field_path.as_str() {
        "metadata.name" => meta.name.clone(),
        "metadata.namespace" => meta.namespace.clone(),
        "metadata.uid" => meta.uid.clone(),
        "spec.nodeName" => spec.node_name.clone(),
        "spec.serviceAccountName" => spec.service_account_name.clone(),
        "status.podIP" | "status.podIPs" => Some(address.to_owned()),
        "status.hostIP" | "status.hostIPs" => Some(super::super::NODE.to_owned()),
        path => {
            let key = |map: &str| path.strip_prefix(map)?.strip_prefix("['")?.strip_suffix("']");
            let (map, key) = match (key("metadata.labels"), key("metadata.annotations")) {
                (Some(key), _) => (&meta.labels, key),
                (_, Some(key)) => (&meta.annotations, key),
                (None, None) => bail!("the field `{path}` is not played"),
            };
            map.as_ref().and_then(|map| map.get(key)).cloned()
        }
    };
    Ok(value.unwrap_or_default())
}

/// `text` with each `$(NAME)` of a known variable replaced; `$$` stands for `$`.
pub(super) fn expanded(text: &str, variables: &[(String, String)]) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        let named = after.strip_prefix('(').and_then(|inner| inner.split_once(')'));
        if let Some(literal) = after.strip_prefix('$') {
            out.push('$');
            rest = literal;
        } else if let Some((name, tail)) = named
            && let Some((_, value)) = variables.iter().rev().find(|(known, _)| known == name)
        {
            out.push_str(value);
            rest = tail;
        } else {
            out.push('$');
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

fn maps(client: &Client, pod: &Pod) -> Api<ConfigMap> {
    Api::namespaced(client.clone(), pod.metadata.namespace.as_deref().unwrap_or_default())
}

fn secrets(client: &Client, pod: &Pod) -> Api<Secret> {
    Api::namespaced(client.clone(), pod.metadata.namespace.as_deref().unwrap_or_default())
}

/// The object, or an empty one if it is optional.
pub(super) fn required<T: Default>(found: Option<T>, optional: Option<bool>, name: &str) -> Result<T> {
    match found {
        Some(found) => Ok(found),
        None if optional == Some(true) => Ok(T::default()),
        None => bail!("`{name}` is not there"),
    }
}

fn optional(value: Option<String>, optional: Option<bool>, key: &str) -> Result<Option<String>> {
    if value.is_none() && optional != Some(true) {
        bail!("there is no key `{key}`");
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::expanded;

    #[test]
    fn variables_are_expanded_as_kubernetes_does() {
        let variables = [("A".to_owned(), "1".to_owned()), ("A".to_owned(), "2".to_owned())];
        for (text, wanted) in [
            ("x$(A)y", "x2y"),
            ("$$(A)", "$(A)"),
            ("$(B)", "$(B)"),
            ("$A", "$A"),
            ("$", "$"),
            ("a$(A", "a$(A"),
        ] {
            assert_eq!(expanded(text, &variables), wanted, "{text}");
        }
    }
}
