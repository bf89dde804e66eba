//! What is said when there is no usable library. The table is per process, so a library that loads is never given
//! here; that is for the tests of the store.

use std::ffi::CStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr;

use foundationdb_sys::{
    LoadError, NOT_LOADED, fdb_create_database, fdb_get_error, fdb_get_max_api_version, fdb_setup_network,
    library, load,
};

/// Compiles `source` to a shared library in `folder`.
fn build(folder: &Path, source: &str) -> PathBuf {
    let (code, library) = (folder.join("stub.rs"), folder.join("libfdb_c.so"));
    fs::write(&code, source).unwrap();
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let status = Command::new(rustc)
        .args(["--edition", "2024", "--crate-type", "cdylib", "-o"])
        .args([&library, &code])
        .status()
        .unwrap();
    assert!(status.success());
    library
}

#[test]
fn an_old_library_is_refused_with_its_version() {
    let folder = tempfile::tempdir().unwrap();
    let source = "#[unsafe(no_mangle)] pub extern \"C\" fn fdb_get_max_api_version() -> i32 { 620 }";
    let path = build(folder.path(), source);
    let error = load(Some(&path)).unwrap_err();
    assert_eq!(error, LoadError::TooOld { path: path.clone(), found: 620 });
    let text = error.to_string();
    assert!(text.contains("too old") && text.contains("620") && text.contains("730"), "{text}");
    assert!(library().is_none());
}

#[test]
fn a_library_of_something_else_is_refused_with_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let path = build(folder.path(), "#[unsafe(no_mangle)] pub extern \"C\" fn unrelated() {}");
    let text = load(Some(&path)).unwrap_err().to_string();
    assert!(text.contains("fdb_get_max_api_version") && text.contains("libfdb_c.so"), "{text}");

    let source = "#[unsafe(no_mangle)] pub extern \"C\" fn fdb_get_max_api_version() -> i32 { 800 }";
    let folder = tempfile::tempdir().unwrap();
    let text = load(Some(&build(folder.path(), source))).unwrap_err().to_string();
    assert!(text.contains("fdb_get_error"), "{text}");
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let text = load(Some(Path::new("/nowhere/libfdb_c.so"))).unwrap_err().to_string();
    assert!(text.contains("/nowhere/libfdb_c.so (cannot open"), "{text}");
}

#[test]
fn calls_before_loading_are_errors() {
    let mut database = ptr::null_mut();
    // SAFETY: without a library none of these reaches C.
    unsafe {
        assert_eq!(fdb_get_max_api_version(), 0);
        assert_eq!(fdb_setup_network(), NOT_LOADED);
        assert_eq!(fdb_create_database(ptr::null(), &raw mut database), NOT_LOADED);
        assert!(CStr::from_ptr(fdb_get_error(NOT_LOADED)).to_str().unwrap().contains("not loaded"));
    }
    assert!(database.is_null());
}
