//! Opens the client library. Knows where to look, not what it is used for.

use std::env;
use std::ffi::{CStr, OsString, c_int};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use parking_lot::Mutex;

use crate::FDB_API_VERSION;
use crate::bindings::Functions;

/// Names a library, when [`load`] is not given one.
const PATH_VARIABLE: &str = "FDB_LOCAL_CLIENT_LIBRARY_PATH";
/// Where packages, images and people put it if the loader does not look there itself.
const FOLDERS: &[&str] = &[
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/local/lib64",
    "/opt/foundationdb/lib",
    "/var/dynamic-conf/lib",
];

static LIBRARY: OnceLock<Library> = OnceLock::new();

/// The client library, loaded.
pub struct Library {
    pub(crate) functions: Functions,
    path: PathBuf,
    api_version_max: i32,
}

/// Why the library could not be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// It is at none of the places.
    #[error("the FoundationDB client library could not be opened: {}", list(.tried))]
    NotFound {
        /// Where it was looked for, and what came of it.
        tried: Vec<(PathBuf, String)>,
    },
    /// It serves older versions of the API alone.
    #[error(
        "the FoundationDB client library {} is too old: API version {found} at most, {FDB_API_VERSION} is needed",
        .path.display()
    )]
    TooOld {
        /// What was loaded.
        path: PathBuf,
        /// The latest API version it serves.
        found: i32,
    },
    /// It is another library, or one that has lost a function.
    #[error("{} is not a client library of FoundationDB 7.3 or later: {reason}", .path.display())]
    NotUsable {
        /// What was loaded.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
}

fn list(tried: &[(PathBuf, String)]) -> String {
    // Most often it is the same for all of them.
    let of_one_reason = tried.chunk_by(|(_, first), (_, second)| first == second);
    let each = of_one_reason.map(|tried| {
        let paths: Vec<_> = tried.iter().map(|(path, _)| path.display().to_string()).collect();
        format!("{} ({})", paths.join(", "), tried.first().map_or("", |(_, why)| why))
    });
    each.collect::<Vec<_>>().join(", ")
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Library")
            .field("path", &self.path)
            .field("api_version_max", &self.api_version_max)
            .finish_non_exhaustive()
    }
}

impl Library {
    /// What was opened: a path, or a name that the system's loader found.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The latest API version it serves.
    #[must_use]
    pub const fn api_version_max(&self) -> i32 {
        self.api_version_max
    }

    /// Its own version, like `7.3.79`.
    #[must_use]
    pub fn client_version(&self) -> String {
        // SAFETY: takes nothing, and returns a string that lives as long as the library.
        let text = unsafe { self.functions.fdb_get_client_version() };
        if text.is_null() {
            return String::new();
        }
        // SAFETY: not null, ends with a zero byte, and lives as long as the library.
        let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
        text.split(',').next().unwrap_or_default().to_owned()
    }
}

/// The library, once it is loaded.
#[must_use]
pub fn library() -> Option<&'static Library> {
    LIBRARY.get()
}

/// Opens the library, unless that is done already: `path`, or what `FDB_LOCAL_CLIENT_LIBRARY_PATH` names, and nothing
/// else if there is either; else `libfdb_c.so` by the search of the system's loader, then in well-known folders.
///
/// # Errors
/// [`LoadError`]; a later call tries again.
pub fn load(path: Option<&Path>) -> Result<&'static Library, LoadError> {
    // Two at once would open it twice.
    static LOADING: Mutex<()> = Mutex::new(());
    let _loading = LOADING.lock();
    if let Some(library) = LIBRARY.get() {
        return Ok(library);
    }
    let library = find(candidates(path, env::var_os(PATH_VARIABLE)))?;
    Ok(LIBRARY.get_or_init(|| library))
}

fn candidates(path: Option<&Path>, variable: Option<OsString>) -> Vec<PathBuf> {
    let named =
        path.map(Path::to_owned).or_else(|| variable.filter(|path| !path.is_empty()).map(PathBuf::from));
    if let Some(named) = named {
        return vec![named];
    }
    let name = PathBuf::from(libloading::library_filename("fdb_c"));
    let in_folders = FOLDERS.iter().map(|folder| Path::new(folder).join(&name));
    [name.clone()].into_iter().chain(in_folders).collect()
}

/// The first candidate that can be opened, whatever it is.
fn find(candidates: Vec<PathBuf>) -> Result<Library, LoadError> {
    let mut tried = Vec::new();
    for path in candidates {
        match open(&path) {
            Ok(opened) => return check(opened, path),
            Err(error) => {
                let why = error.to_string();
                // The loader begins with the name, which stands there already.
                let why = why.strip_prefix(&format!("{}: ", path.display())).unwrap_or(&why).to_owned();
                tried.push((path, why));
            }
        }
    }
    Err(LoadError::NotFound { tried })
}

#[cfg(unix)]
fn open(path: &Path) -> Result<libloading::Library, libloading::Error> {
    use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

    // SAFETY: opening runs the initialisers of the library, which its owner has chosen to run; those of FoundationDB
    // only set up memory of their own.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map(Into::into)
}

#[cfg(not(unix))]
fn open(path: &Path) -> Result<libloading::Library, libloading::Error> {
    // SAFETY: opening runs the initialisers of the library, which its owner has chosen to run; those of FoundationDB
    // only set up memory of their own.
    unsafe { libloading::Library::new(path) }
}

fn check(opened: libloading::Library, path: PathBuf) -> Result<Library, LoadError> {
    let not_usable =
        |error: libloading::Error| LoadError::NotUsable { path: path.clone(), reason: error.to_string() };
    let name = c"fdb_get_max_api_version".to_bytes_with_nul();
    // SAFETY: a function of this name has had this type in each version of the C API.
    let api_version_max = unsafe { opened.get::<unsafe extern "C" fn() -> c_int>(name) };
    // SAFETY: it takes nothing and may be called before everything else.
    let api_version_max = unsafe { api_version_max.map_err(not_usable)?() };
    if i64::from(api_version_max) < i64::from(FDB_API_VERSION) {
        // Never closed: FoundationDB's library cannot be.
        std::mem::forget(opened);
        return Err(LoadError::TooOld { path, found: api_version_max });
    }
    // SAFETY: functions keep their types from one API version to the next, and this one is served.
    let functions = unsafe { Functions::from_library(opened) }.map_err(not_usable)?;
    Ok(Library { functions, path, api_version_max })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_is_the_only_place_to_look() {
        let named = candidates(Some(Path::new("/a.so")), Some("/b.so".into()));
        assert_eq!(named, [PathBuf::from("/a.so")]);
        assert_eq!(candidates(None, Some("/b.so".into())), [PathBuf::from("/b.so")]);
        let searched = candidates(None, Some(OsString::new()));
        assert_eq!(searched.len(), 1 + FOLDERS.len());
        assert!(searched[0].parent().is_some_and(|folder| folder.as_os_str().is_empty()), "{searched:?}");
    }

    #[test]
    fn where_it_is_not_is_told() {
        let places = ["/nowhere/libfdb_c.so", "/nor/here.so", "/dev/null"].map(PathBuf::from);
        let error = find(places.to_vec()).unwrap_err();
        let LoadError::NotFound { tried } = &error else { panic!("{error}") };
        assert_eq!(tried.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>(), places);
        let text = error.to_string();
        assert!(
            text.contains("/nowhere/libfdb_c.so, /nor/here.so (cannot open shared object file"),
            "{text}"
        );
    }
}
