//! Folders as they are in the world: links, strangers, too much, changing.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::time::Duration;

use weir_manifest::{BYTES_MAX, FILES_MAX, Folder, Watcher, load};

use crate::folder;

fn queue(name: &str) -> String {
    format!("apiVersion: weir.dev/v1alpha1\nkind: MessageQueue\nmetadata: {{name: {name}}}\nspec: {{}}\n")
}

fn errors(dir: &std::path::Path) -> Vec<String> {
    load(dir).unwrap_err().iter().map(ToString::to_string).collect()
}

#[test]
fn only_manifest_files_are_read() {
    let dir = folder(&[
        ("b.yaml", &queue("b")),
        ("a.yml", &queue("a")),
        (".hidden.yaml", "{"),
        ("notes.txt", "{"),
        ("c.yaml.bak", "{"),
    ]);
    fs::create_dir(dir.path().join("folder.yaml")).unwrap();
    let set = load(dir.path()).unwrap();
    let names: Vec<&str> = set.queues.iter().map(|queue| queue.object.queue_name()).collect();
    assert_eq!(names, ["a", "b"]);
}

/// A ConfigMap mount: the files in a hidden folder of changing name, behind two steps of links.
#[test]
fn links_are_followed_and_their_switch_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let mount = dir.path();
    for (version, name) in [("..1", "old"), ("..2", "new")] {
        fs::create_dir(mount.join(version)).unwrap();
        fs::write(mount.join(version).join("q.yaml"), queue(name)).unwrap();
    }
    symlink("..1", mount.join("..data")).unwrap();
    symlink("..data/q.yaml", mount.join("q.yaml")).unwrap();

    let mut watcher = Watcher::new(mount, Duration::from_secs(1));
    assert_eq!(watcher.poll().unwrap().unwrap().queues[0].object.queue_name(), "old");
    assert!(watcher.poll().is_none());

    symlink("..2", mount.join("..data_tmp")).unwrap();
    fs::rename(mount.join("..data_tmp"), mount.join("..data")).unwrap();
    assert!(watcher.poll().is_none(), "not before it is seen twice");
    assert_eq!(watcher.poll().unwrap().unwrap().queues[0].object.queue_name(), "new");
    assert!(watcher.poll().is_none());
}

#[test]
fn a_watcher_tells_each_mistake_once_and_the_way_back() {
    let dir = folder(&[("q.yaml", &queue("a"))]);
    let file = dir.path().join("q.yaml");
    let mut watcher = Watcher::new(dir.path(), Duration::from_secs(1));
    assert!(watcher.poll().unwrap().is_ok());

    fs::write(&file, "{").unwrap();
    assert!(watcher.poll().is_none());
    assert!(watcher.poll().unwrap().is_err());
    assert!(watcher.poll().is_none());

    fs::write(&file, queue("a")).unwrap();
    assert!(watcher.poll().is_none());
    assert!(watcher.poll().unwrap().is_ok());

    fs::rename(dir.path(), dir.path().with_extension("gone")).unwrap();
    assert!(watcher.poll().is_none());
    assert!(watcher.poll().unwrap().unwrap_err()[0].to_string().contains("cannot be read"));
    assert!(watcher.poll().is_none());
    fs::rename(dir.path().with_extension("gone"), dir.path()).unwrap();
}

#[test]
fn a_change_that_is_undone_before_it_settles_is_none() {
    let dir = folder(&[("q.yaml", &queue("a"))]);
    let mut watcher = Watcher::new(dir.path(), Duration::from_secs(1));
    assert!(watcher.poll().unwrap().is_ok());
    fs::write(dir.path().join("q.yaml"), "").unwrap();
    assert!(watcher.poll().is_none());
    fs::write(dir.path().join("q.yaml"), queue("a")).unwrap();
    assert!(watcher.poll().is_none());
    assert!(watcher.poll().is_none());
}

#[test]
fn fingerprints_tell_names_and_contents_apart() {
    let print = |files: &[(&str, &str)]| Folder::read(folder(files).path()).unwrap().fingerprint();
    let base = print(&[("a.yaml", "ab"), ("b.yaml", "c")]);
    assert_eq!(base, print(&[("b.yaml", "c"), ("a.yaml", "ab"), ("c.txt", "x")]));
    assert_ne!(base, print(&[("a.yaml", "a"), ("b.yaml", "bc")]));
    assert_ne!(base, print(&[("a.yaml", "ab"), ("c.yaml", "c")]));
    assert_ne!(base, print(&[("a.yaml", "ab")]));
}

#[test]
fn what_cannot_be_read_is_said() {
    let dir = folder(&[("a.yaml", &queue("a"))]);
    symlink("nowhere", dir.path().join("b.yaml")).unwrap();
    symlink("/dev/null", dir.path().join("c.yaml")).unwrap();
    assert_eq!(
        errors(dir.path()),
        [
            "b.yaml: cannot be read: No such file or directory (os error 2)",
            "c.yaml: cannot be read: not a regular file",
        ]
    );
    let missing = dir.path().join("missing");
    let error = format!("{}: cannot be read: No such file or directory (os error 2)", missing.display());
    assert_eq!(errors(&missing), [error]);
}

#[test]
fn too_much_is_refused_unread() {
    let dir = folder(&[]);
    File::create(dir.path().join("huge.yaml")).unwrap().set_len(100_000_000).unwrap();
    let message = "the manifests of the folder are too large; allowed: 16 MiB together";
    assert_eq!(errors(dir.path()), [format!("huge.yaml: {message}")]);

    let dir = folder(&[("b.yaml", "# one byte too many")]);
    File::create(dir.path().join("a.yaml")).unwrap().set_len(BYTES_MAX - 18).unwrap();
    assert_eq!(errors(dir.path()), [format!("b.yaml: {message}")]);

    let dir = folder(&[]);
    for n in 0..=FILES_MAX {
        File::create(dir.path().join(format!("{n}.yaml"))).unwrap();
    }
    assert!(errors(dir.path())[0].ends_with("has too many manifest files; allowed: 1000"));
    fs::remove_file(dir.path().join("0.yaml")).unwrap();
    assert!(load(dir.path()).is_ok());
}
