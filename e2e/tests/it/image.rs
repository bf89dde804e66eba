//! The root of the container image: what `.ci/image-root` lays out has all that its programs need.

use std::ffi::OsStr;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use tokio::process::Command;
use weir_e2e::weir;

/// What `program` prints. Nothing of this process's environment is in its own but the PATH.
async fn run(program: &str, arguments: &[&OsStr], path: &OsStr) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments).env_clear().env("PATH", path).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.with_context(|| format!("run {program}"))?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?}: {}: {complaint}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

#[tokio::test]
async fn the_programs_of_the_image_run_on_its_root() -> Result<()> {
    let built = weir::binary().await?.parent().context("the folder of the programs")?;
    let folder = tempfile::tempdir()?;
    let root = folder.path().join("root");
    let mut path = std::env::var_os("PATH").context("PATH")?;
    let is_root = rustix::process::geteuid().is_root();
    if !is_root {
        // Only root gives files away. Whose they are is nothing that the programs need to start.
        symlink("/bin/true", folder.path().join("chown"))?;
        let inherited = path;
        path = folder.path().as_os_str().to_owned();
        path.push(":");
        path.push(inherited);
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.ci/image-root");
    run("sh", &[script.as_os_str(), built.as_os_str(), root.as_os_str()], &path).await?;

    let within = if is_root { vec![] } else { vec![OsStr::new("--map-root-user")] };
    let mut enter = within.clone();
    enter.extend([OsStr::new("--root=/"), OsStr::new("true")]);
    let may_enter = run("unshare", &enter, &path).await;
    for name in ["weir", "weir-operator"] {
        let program = root.join("usr/local/bin").join(name);
        let libraries = run("ldd", &[program.as_os_str()], &path).await?;
        let mut found = 0;
        for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
            ensure!(root.join(&library[1..]).is_file(), "{name} needs {library}, which the image has not");
            found += 1;
        }
        ensure!(found > 1, "no loader and C library among what {name} needs: {libraries}");

        if let Err(error) = &may_enter {
            println!("{name} is not run: this user may not change the root folder: {error}");
            continue;
        }
        let mut arguments = within.clone();
        let [new_root, inside] = [format!("--root={}", root.display()), format!("/usr/local/bin/{name}")];
        arguments.extend([OsStr::new(&new_root), OsStr::new(&inside), OsStr::new("--version")]);
        let said = run("unshare", &arguments, &path).await?;
        ensure!(said == weir::version(&built.join(name)).await?, "{name} on the image's root: {said}");
    }
    Ok(())
}
