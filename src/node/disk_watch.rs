//! Watches the disk's free space, so that growth is refused while there is still room for what
//! heals: deletes, compaction and the log itself.

use super::config::Checked;
use crate::env::TaskSet;
use crate::service::Service;
use std::io;
use std::path::Path;
use std::time::Duration;
use tokio::sync::watch;

/// Short, because a fast writer fills hundreds of megabytes in a second.
const INTERVAL: Duration = Duration::from_millis(200);
/// The directory's own size only matters to people: every this many looks.
const SIZE_EVERY: u32 = 25;
/// The reserve is at most this share of the file system, so that a small one is usable at all.
const RESERVE_PERCENT_MAX: u64 = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Space {
    pub(super) free: u64,
    pub(super) total: u64,
}

/// What an unprivileged writer could still write below `path`, and the file system's size.
pub(super) fn space(path: &Path) -> io::Result<Space> {
    let stat = rustix::fs::statvfs(path)?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    Ok(Space { free: bytes(stat.f_bavail), total: bytes(stat.f_blocks) })
}

/// The low watermark: the reserve, or its share of a small file system.
#[must_use]
pub(super) fn reserve(space: Space, reserve_bytes: u64) -> u64 {
    reserve_bytes.min(space.total / 100 * RESERVE_PERCENT_MAX)
}

/// A segment of the log that leaves a small disk room for more than one.
#[must_use]
pub(super) fn segment_bytes(space: Space, most: u64) -> u64 {
    const LEAST: u64 = 1 << 20;
    (space.total / 16).clamp(LEAST, most)
}

/// Runs until stopped. Growth is accepted again at twice the mark, so that it does not flap.
pub(super) async fn run(service: Service, tasks: TaskSet, settings: watch::Receiver<Checked>) {
    let root = settings.borrow().data_dir.clone();
    let mut ticks = tokio::time::interval(INTERVAL);
    let (mut low, mut used, mut look) = (false, 0, 0_u32);
    loop {
        ticks.tick().await;
        let (dir, measure) = (root.clone(), look.is_multiple_of(SIZE_EVERY));
        look = look.wrapping_add(1);
        let Some((space, size)) = tasks.blocking(move || (space(&dir), measure.then(|| dir_bytes(&dir)))).await else {
            continue;
        };
        used = size.unwrap_or(used);
        match space {
            Ok(space) => {
                let mark = reserve(space, settings.borrow().disk_reserve_bytes);
                low = space.free < if low { mark.saturating_mul(2) } else { mark };
                service.note_disk(low, used);
            }
            Err(error) => tracing::warn!(%error, "cannot read the free space of the data directory"),
        }
    }
}

/// Bytes allocated to the files below `dir`; files that vanish meanwhile count as nothing.
fn dir_bytes(dir: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => dir_bytes(&entry.path()),
            Ok(metadata) => metadata.blocks().saturating_mul(512),
            Err(_) => 0,
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_disk_keeps_a_small_reserve() {
        let small = Space { free: 0, total: 24 << 20 };
        assert_eq!(reserve(small, 256 << 20), (24 << 20) / 100 * 5);
        assert_eq!(reserve(Space { free: 0, total: 1 << 40 }, 256 << 20), 256 << 20);
        assert_eq!(segment_bytes(small, 64 << 20), (24 << 20) / 16);
        assert_eq!(segment_bytes(Space { free: 0, total: 1 << 40 }, 64 << 20), 64 << 20);
    }
}
