//! The cluster file, looked at before FoundationDB does: that one says little of what is wrong with it, and waits for
//! ever on coordinators that are not there.

use std::path::Path;
use std::{fs, io};

use rustix::fs::{Access, access};
use weir_storage::{Error, Result};

/// Most that a cluster file holds, in bytes; FoundationDB's own limit.
const BYTES_MAX: u64 = 100_000;

/// Checks the file and returns the addresses of the coordinators, as they stand there.
pub(crate) fn check(path: &Path) -> Result<String> {
    let text = read(path).map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::NotFound => {
                "; a cluster keeps it at /etc/foundationdb/fdb.cluster on its servers, copy it from there"
            }
            io::ErrorKind::PermissionDenied => "; the user that runs this needs to read and write it",
            _ => "",
        };
        unusable(path, format_args!("{error}{advice}"))
    })?;
    let coordinators = coordinators(&text).ok_or_else(|| {
        unusable(
            path,
            format_args!("not a cluster file; it holds one line `description:id@host:port,host:port,...`"),
        )
    })?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if access(path, Access::WRITE_OK).is_err() || access(folder, Access::WRITE_OK).is_err() {
        tracing::warn!(
            file = %path.display(),
            "the cluster file and its folder can't be written: when the coordinators of the cluster change, this \
             process will lose it once it is restarted"
        );
    }
    Ok(coordinators)
}

fn read(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > BYTES_MAX {
        return Err(io::Error::other("larger than a cluster file can be"));
    }
    fs::read_to_string(path)
}

fn unusable(path: &Path, why: std::fmt::Arguments<'_>) -> Error {
    Error::Unavailable(format!("FoundationDB cluster file {}: {why}", path.display()).into())
}

/// What stands behind the `@` of the one line that is no comment.
fn coordinators(text: &str) -> Option<String> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let (line, None) = (lines.next()?, lines.next()) else { return None };
    let (name, coordinators) = line.split_once('@')?;
    let (description, id) = name.split_once(':')?;
    let is_word =
        |word: &str| !word.is_empty() && word.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
    let is_address =
        |address: &str| address.trim_end_matches(":tls").rsplit_once(':').is_some_and(is_host_and_port);
    (is_word(description) && is_word(id) && coordinators.split(',').all(is_address))
        .then(|| coordinators.to_owned())
}

fn is_host_and_port((host, port): (&str, &str)) -> bool {
    !host.is_empty() && port.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn coordinators_stand_behind_the_at() {
        for (text, expected) in [
            ("a:b@127.0.0.1:4500", Some("127.0.0.1:4500")),
            ("# managed\n\n a:b@10.0.0.1:4500:tls,[::1]:4501 \n", Some("10.0.0.1:4500:tls,[::1]:4501")),
            ("a:b@fdb-0.fdb:4500", Some("fdb-0.fdb:4500")),
            ("", None),
            ("a:b", None),
            ("ab@127.0.0.1:4500", None),
            ("a:b@127.0.0.1", None),
            ("a:b@127.0.0.1:4500\nc:d@127.0.0.1:4500", None),
            ("[store]\nfile = 'x@y'", None),
        ] {
            assert_eq!(coordinators(text).as_deref(), expected, "{text:?}");
        }
    }
}
