//! How much room the disk has, and what is taken when it is little. Knows no files.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::local::Room;
use crate::{Error, StoreStats};

/// The part of the reserve below which nothing is taken, not even what frees room: moving the write buffer to tables
/// and compaction need some themselves.
const LAST_PART: u64 = 4;

/// Asks how many bytes are free where the path is.
type Probe = Box<dyn Fn(&Path) -> io::Result<u64> + Send>;

/// Watches the disk of a store.
pub(super) struct Space {
    dir: PathBuf,
    reserve: u64,
    probe: Probe,
    stats: Arc<StoreStats>,
    was_short: bool,
}

impl Space {
    pub(super) fn new(dir: &Path, reserve: u64, stats: Arc<StoreStats>) -> Self {
        Self { dir: dir.to_owned(), reserve, probe: Box::new(free_bytes), stats, was_short: false }
    }

    /// With another way to find out, for tests.
    #[cfg(test)]
    pub(super) fn with_probe(mut self, probe: impl Fn(&Path) -> io::Result<u64> + Send + 'static) -> Self {
        self.probe = Box::new(probe);
        self
    }

    /// What can be taken now. A disk that does not say is taken to have room: writing will tell.
    pub(super) fn room(&mut self) -> Room {
        let Ok(free) = (self.probe)(&self.dir) else { return Room::Plenty };
        self.stats.disk_free_bytes.store(free, Ordering::Relaxed);
        let is_short = free < self.reserve;
        if is_short != self.was_short {
            self.was_short = is_short;
            let (folder, reserve) = (self.dir.display(), self.reserve);
            match is_short {
                true => tracing::error!(%folder, free, reserve, "disk full: only what frees room is taken"),
                false => tracing::info!(%folder, free, reserve, "the disk has room again"),
            }
        }
        if !is_short {
            return Room::Plenty;
        }
        let text = format!(
            "{}: disk full: {} MiB left of a reserve of {} MiB: make room on the disk",
            self.dir.display(),
            free >> 20,
            self.reserve >> 20
        );
        let error = Error::Unavailable(text.into());
        if free < self.reserve / LAST_PART { Room::Nothing(error) } else { Room::OnlyFreeing(error) }
    }
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Space")
            .field("dir", &self.dir)
            .field("reserve", &self.reserve)
            .finish_non_exhaustive()
    }
}

/// Free space on the disk that holds `path`.
pub(super) fn free_bytes(path: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(path)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn little_room_takes_what_frees_and_very_little_takes_nothing() {
        let (stats, free) = (Arc::<StoreStats>::default(), Arc::new(AtomicU64::new(0)));
        let probed = Arc::clone(&free);
        let mut space = Space::new(Path::new("/data"), 100 * MIB, Arc::clone(&stats))
            .with_probe(move |_| Ok(probed.load(Ordering::Relaxed)));
        let mut room = |bytes| {
            free.store(bytes, Ordering::Relaxed);
            space.room()
        };
        assert!(matches!(room(100 * MIB), Room::Plenty));
        let Room::OnlyFreeing(error) = room(100 * MIB - 1) else { panic!("no reserve is kept") };
        let text = error.to_string();
        assert!(text.contains("/data: disk full: 99 MiB left of a reserve of 100 MiB: make room"), "{text}");
        assert!(matches!(room(25 * MIB), Room::OnlyFreeing(_)));
        assert!(matches!(room(25 * MIB - 1), Room::Nothing(_)));
        assert!(matches!(room(100 * MIB), Room::Plenty));
        assert_eq!(stats.disk_free_bytes.load(Ordering::Relaxed), 100 * MIB);

        let mut space = space.with_probe(|_| Err(io::ErrorKind::Unsupported.into()));
        assert!(matches!(space.room(), Room::Plenty));
    }

    #[test]
    fn the_disk_says_how_much_is_free() {
        assert!(free_bytes(&std::env::temp_dir()).unwrap() > 0);
    }
}
