//! Snapshot files: damage at every byte, crashes between all steps, and what is kept.

use super::*;
use crate::storage::simdisk::{Injected, Operation, SimDisk, Survivors};
use proptest::prelude::*;

const DIR: &str = "/data/snapshot";

fn meta(index: u64) -> SnapshotMeta {
    SnapshotMeta {
        cluster_id: 7,
        last: LogPosition { term: 3, node: 1, index },
        membership: Bytes::from_static(b"members"),
        revision: 40 + i64::try_from(index).unwrap(),
        created_wall_ms: 1_800_000_000_000,
        extra: Bytes::from_static(b"extra"),
    }
}

fn open(disk: &SimDisk) -> SnapshotStore {
    SnapshotStore::open(Arc::new(disk.clone()), DIR).unwrap()
}

fn blocks(index: u64) -> Vec<Vec<u8>> {
    let byte = index.to_le_bytes()[0];
    vec![vec![byte; 10], vec![byte ^ 1; 1], vec![byte ^ 2; 3000]]
}

fn write(store: &SnapshotStore, index: u64, blocks: &[Vec<u8>]) -> Result<SnapshotSummary, Fault> {
    let mut writer = store.begin(meta(index))?;
    for block in blocks {
        writer.write_block(block)?;
    }
    writer.finish()
}

fn id(index: u64) -> SnapshotId {
    SnapshotId { index, term: 3 }
}

fn path(index: u64) -> PathBuf {
    Path::new(DIR).join(id(index).file_name())
}

fn indexes(store: &SnapshotStore) -> Vec<u64> {
    store.list().unwrap().iter().map(|file| file.id.index).collect()
}

fn newest(store: &SnapshotStore) -> (Option<u64>, usize) {
    let found = store.newest_verified().unwrap();
    let index = found.snapshot.map(|(summary, reader)| {
        let read: Result<Vec<Bytes>, Fault> = reader.collect();
        assert_eq!(read.unwrap(), blocks(summary.meta.last.index));
        summary.meta.last.index
    });
    (index, found.damaged.len())
}

/// Everything a reader does with a file of these bytes.
fn read_planted(bytes: &[u8]) -> Result<(SnapshotSummary, Vec<Bytes>), Fault> {
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new(DIR)).unwrap();
    disk.plant(&path(1), bytes);
    let summary = verify_file(&disk, &path(1));
    let read = open(&disk).read(id(1)).and_then(Iterator::collect);
    assert_eq!(summary.is_ok(), read.is_ok(), "verification and reading agree");
    Ok((summary?, read?))
}

fn small_file() -> Vec<u8> {
    let disk = SimDisk::new();
    write(&open(&disk), 1, &blocks(1)[..2]).unwrap();
    disk.contents(&path(1)).unwrap()
}

#[test]
fn a_snapshot_gives_back_what_was_written() {
    let disk = SimDisk::new();
    let store = open(&disk);
    assert_eq!(newest(&store), (None, 0));
    let written = write(&store, 1, &blocks(1)).unwrap();
    assert_eq!((written.blocks, written.payload_bytes), (3, 3011));
    assert_eq!(written.file_bytes, u64::try_from(disk.contents(&path(1)).unwrap().len()).unwrap());
    assert_eq!(verify_file(&disk, &path(1)).unwrap(), written);
    // After a restart as well.
    let store = open(&disk);
    assert_eq!(store.list().unwrap()[0].good, None);
    let found = store.newest_verified().unwrap();
    let (summary, reader) = found.snapshot.unwrap();
    assert_eq!((&summary, reader.meta()), (&written, &meta(1)));
    let ahead = store.read(id(1)).unwrap().read_ahead(2).unwrap();
    assert_eq!(ahead.meta(), &meta(1));
    assert_eq!(reader.map(Result::unwrap).collect::<Vec<_>>(), blocks(1));
    assert_eq!(ahead.map(Result::unwrap).collect::<Vec<_>>(), blocks(1));
    assert_eq!(store.list().unwrap()[0].good, Some(true));
}

#[test]
fn a_snapshot_may_be_empty_or_larger_than_every_buffer() {
    let store = open(&SimDisk::new());
    assert_eq!(write(&store, 1, &[]).unwrap().blocks, 0);
    let large: Vec<Vec<u8>> = (0u8..40).map(|n| vec![n; 30_000 * usize::from(n) + 1]).collect();
    write(&store, 2, &large).unwrap();
    let read: Vec<Bytes> = store.read(id(2)).unwrap().map(Result::unwrap).collect();
    assert_eq!(read, large);
    // Whoever wants no more of a stream just drops it.
    let mut ahead = store.read(id(2)).unwrap().read_ahead(1).unwrap();
    assert_eq!(ahead.next().unwrap().unwrap(), large[0]);
    drop(ahead);
}

#[test]
fn blocks_of_no_or_too_many_bytes_are_not_written() {
    let store = open(&SimDisk::new());
    let mut writer = store.begin(meta(1)).unwrap();
    assert!(writer.write_block(&[]).is_err());
    assert!(writer.write_block(&vec![0; (16 << 20) + 1]).is_err());
    let huge = SnapshotMeta { extra: vec![0; 2 << 20].into(), ..meta(1) };
    assert!(store.begin(huge).is_err());
}

#[test]
fn every_flipped_bit_and_every_cut_is_detected() {
    let file = small_file();
    assert!(read_planted(&file).is_ok());
    for at in 0..file.len() {
        assert!(read_planted(&file[..at]).is_err(), "cut at {at}");
        for bit in 0..8 {
            let mut damaged = file.clone();
            damaged[at] ^= 1 << bit;
            assert!(read_planted(&damaged).is_err(), "bit {bit} of byte {at}");
        }
    }
    let longer: Vec<u8> = file.iter().copied().chain([0]).collect();
    assert!(read_planted(&longer).is_err());
}

#[test]
fn swapped_and_missing_blocks_are_detected_by_their_own_checksums() {
    let disk = SimDisk::new();
    write(&open(&disk), 1, &[vec![1; 8], vec![2; 8]]).unwrap();
    let file = disk.contents(&path(1)).unwrap();
    let first = format::header(&meta(1)).unwrap().len();
    let second = first + 16;
    let mut swapped = file.clone();
    swapped[first..first + 16].copy_from_slice(&file[second..second + 16]);
    swapped[second..second + 16].copy_from_slice(&file[first..first + 16]);
    assert!(read_planted(&swapped).unwrap_err().to_string().contains("checksum of block 0"));
    let mut missing = file.clone();
    missing.drain(second..second + 16);
    assert!(read_planted(&missing).unwrap_err().to_string().contains("missing"));
}

/// By that length etcd's client knows a backup that ends with a digest.
#[test]
fn the_digest_follows_a_multiple_of_512_bytes() {
    let store = open(&SimDisk::new());
    for (index, bytes) in (1..).zip((1..1100).step_by(37)) {
        let written = write(&store, index, &[vec![7; bytes]]).unwrap();
        assert_eq!(written.file_bytes % 512, 32, "{bytes} bytes");
    }
}

#[test]
fn a_foreign_format_says_so() {
    let mut file = small_file();
    file[8] = 9;
    assert!(read_planted(&file).unwrap_err().to_string().contains("format version 9"));
    assert!(read_planted(b"something else entirely").unwrap_err().to_string().contains("not a snapshot"));
}

proptest! {
    #[test]
    fn garbage_is_refused(garbage in prop::collection::vec(any::<u8>(), 0..2000), behind_header in any::<bool>()) {
        let mut bytes = garbage;
        if behind_header {
            let mut file = format::header(&meta(1)).unwrap();
            file.append(&mut bytes);
            bytes = file;
        }
        prop_assert!(read_planted(&bytes).is_err());
    }

    #[test]
    fn promised_lengths_allocate_no_more_than_the_file(length in any::<u32>(), tail in 0usize..100) {
        let mut file = format::header(&meta(1)).unwrap();
        file.extend_from_slice(&length.to_le_bytes());
        file.extend(vec![0; tail]);
        prop_assert!(read_planted(&file).is_err());
    }
}

#[test]
fn the_newest_two_are_kept() {
    let disk = SimDisk::new();
    let store = open(&disk);
    assert!(store.second_newest().unwrap().snapshot.is_none());
    write(&store, 10, &blocks(10)).unwrap();
    assert!(store.second_newest().unwrap().snapshot.is_none(), "one is not enough to purge by");
    for index in [20, 30, 300] {
        write(&store, index, &blocks(index)).unwrap();
    }
    assert_eq!(indexes(&store), [300, 30]);
    assert_eq!(store.second_newest().unwrap().snapshot.unwrap().meta.last.index, 30);
    assert_eq!(disk.list(Path::new(DIR)).unwrap().len(), 2);
    assert!(write(&store, 200, &blocks(200)).is_err(), "older than the newest");
    write(&store, 300, &blocks(300)).unwrap();
    assert_eq!(indexes(&store), [300, 30]);
}

#[test]
fn a_damaged_newest_one_gives_way_to_the_older_and_is_reported() {
    let disk = SimDisk::new();
    let store = open(&disk);
    for index in [10, 20] {
        write(&store, index, &blocks(index)).unwrap();
    }
    let mut damaged = disk.contents(&path(20)).unwrap();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    disk.plant(&path(20), &damaged);
    let store = open(&disk);
    let found = store.newest_verified().unwrap();
    assert_eq!(found.snapshot.unwrap().0.meta.last.index, 10);
    assert_eq!(found.damaged[0].path, path(20));
    assert!(found.damaged[0].fault.to_string().contains("digest"));
    assert!(store.second_newest().unwrap().snapshot.is_none(), "the log before the good one is still needed");
    // The state rebuilt from the older one may be written at a position below the damaged one's.
    write(&store, 15, &blocks(15)).unwrap();
    assert_eq!(indexes(&store), [15, 10]);
    assert_eq!(newest(&store), (Some(15), 0));
}

#[test]
fn with_all_damaged_there_is_none_but_two_warnings() {
    let disk = SimDisk::new();
    let store = open(&disk);
    for index in [10, 20] {
        write(&store, index, &blocks(index)).unwrap();
        disk.plant(&path(index), b"TENURESN");
    }
    assert_eq!(newest(&open(&disk)), (None, 2));
}

#[test]
fn a_file_under_another_ones_name_is_damaged() {
    let disk = SimDisk::new();
    write(&open(&disk), 10, &blocks(10)).unwrap();
    disk.plant(&path(11), &disk.contents(&path(10)).unwrap());
    assert_eq!(newest(&open(&disk)), (Some(10), 1));
}

#[test]
fn a_file_that_cannot_be_read_counts_as_damaged() {
    let disk = SimDisk::new();
    write(&open(&disk), 10, &blocks(10)).unwrap();
    let store = open(&disk);
    disk.fail_reads(true);
    assert_eq!(newest(&store), (None, 1));
}

#[test]
fn an_unfinished_snapshot_leaves_nothing() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let mut writer = store.begin(meta(1)).unwrap();
    writer.write_block(b"block").unwrap();
    let two_at_once = store.begin(meta(2)).unwrap();
    drop((writer, two_at_once));
    assert_eq!(disk.list(Path::new(DIR)).unwrap(), Vec::<String>::new());
    let import = store.import().unwrap();
    // A crash, not a drop.
    disk.restart_process();
    std::mem::forget(import);
    assert_eq!(disk.list(Path::new(DIR)).unwrap().len(), 1);
    let store = open(&disk);
    assert_eq!(disk.list(Path::new(DIR)).unwrap(), Vec::<String>::new());
    assert_eq!(newest(&store), (None, 0));
}

/// Operations of the disk that writing the third snapshot takes.
fn third_snapshot() -> (SimDisk, u64, u64) {
    let disk = SimDisk::with_page_bytes(512);
    let store = open(&disk);
    write(&store, 10, &blocks(10)).unwrap();
    write(&store, 20, &blocks(20)).unwrap();
    let before = disk.operations();
    let fork = disk.fork();
    let third = open(&fork);
    let opened = fork.operations() - before;
    write(&third, 30, &blocks(30)).unwrap();
    (disk, before + opened, fork.operations() - before - opened)
}

#[test]
fn a_power_cut_after_any_step_leaves_a_good_snapshot() {
    let (disk, opened, steps) = third_snapshot();
    assert!(steps >= 6, "create, write, flush, rename, flush, remove, flush: {steps}");
    let mut outcomes = Vec::new();
    for step in 0..=steps {
        let survivors = (0..20).map(Survivors::Seeded).chain([Survivors::Nothing, Survivors::Everything]);
        for survivors in survivors {
            let disk = disk.fork();
            let store = open(&disk);
            disk.cut_after(opened + step);
            let written = write(&store, 30, &blocks(30));
            disk.crash(survivors);
            let store = open(&disk);
            let (index, damaged) = newest(&store);
            assert_eq!(damaged, 0, "a half-written file never has a name, after step {step}, {survivors:?}");
            let index = index.unwrap();
            assert!(index == 30 || index == 20 && written.is_err(), "after step {step}, {survivors:?}: {index}");
            let second = store.second_newest().unwrap().snapshot.unwrap().meta.last.index;
            assert_eq!(second, if index == 30 { 20 } else { 10 });
            outcomes.push(index);
            // And work goes on.
            write(&store, 40, &blocks(40)).unwrap();
            assert_eq!(indexes(&store)[..2], [40, index]);
        }
    }
    assert!(outcomes.contains(&20) && outcomes.contains(&30));
}

#[test]
fn an_error_at_any_step_is_reported_and_leaves_the_older_ones() {
    let (disk, opened, steps) = third_snapshot();
    for step in 0..steps {
        for injected in [Injected::Eio, Injected::Enospc, Injected::ShortWrite(100)] {
            let disk = disk.fork();
            let store = open(&disk);
            disk.inject(opened + step, injected);
            let written = write(&store, 30, &blocks(30));
            assert!(written.is_err(), "step {step}, {injected:?}");
            disk.crash(Survivors::Nothing);
            let (index, damaged) = newest(&open(&disk));
            assert!(damaged == 0 && index >= Some(20), "step {step}, {injected:?}");
        }
    }
}

#[test]
fn files_are_flushed_before_they_get_their_name_and_removed_after() {
    let disk = SimDisk::new();
    let store = open(&disk);
    for index in [10, 20] {
        write(&store, index, &blocks(index)).unwrap();
    }
    let before = disk.trace().len();
    write(&store, 30, &blocks(30)).unwrap();
    let trace: Vec<Operation> = disk.trace()[before..].iter().map(|(operation, _)| *operation).collect();
    use Operation::{Create, Remove, Rename, SyncData, SyncDir, Write};
    assert_eq!(trace, [Create, Write, SyncData, Rename, SyncDir, Rename, SyncDir, Remove, SyncDir]);
}

/// So large that it is written out, and freed, in parts.
fn large(index: u64) -> Vec<Vec<u8>> {
    (0..10).map(|block| vec![block ^ index.to_le_bytes()[0]; 1 << 20]).collect()
}

#[test]
fn large_files_are_written_out_and_freed_by_parts() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let syncs = |from: usize| {
        let trace = disk.trace();
        trace[from..].iter().filter(|(operation, _)| *operation == Operation::SyncData).count()
    };
    write(&store, 10, &large(10)).unwrap();
    assert!(syncs(0) >= 10, "{}", syncs(0));
    let reader = store.read(id(10)).unwrap();
    for index in [20, 30] {
        write(&store, index, &blocks(index)).unwrap();
    }
    assert_eq!(reader.map(Result::unwrap).collect::<Vec<_>>(), large(10), "who reads it reads all of it");
    write(&store, 40, &large(40)).unwrap();
    write(&store, 50, &blocks(50)).unwrap();
    let before = disk.trace().len();
    write(&store, 60, &blocks(60)).unwrap();
    assert_eq!(syncs(before), 2, "of the new file, and of the first part of the old one");
    assert_eq!(indexes(&store), [60, 50]);
}

#[test]
fn a_file_that_is_freed_by_parts_never_comes_back_by_its_name() {
    let disk = SimDisk::with_page_bytes(512);
    let store = open(&disk);
    write(&store, 10, &large(10)).unwrap();
    write(&store, 20, &blocks(20)).unwrap();
    let fork = disk.fork();
    let (before, third) = (fork.operations(), open(&fork));
    let opened = fork.operations() - before;
    write(&third, 30, &blocks(30)).unwrap();
    let steps = fork.operations() - before - opened;
    for step in 0..=steps {
        for survivors in [Survivors::Nothing, Survivors::Everything, Survivors::Seeded(1), Survivors::Seeded(2)] {
            let disk = disk.fork();
            let store = open(&disk);
            disk.cut_after(before + opened + step);
            drop(write(&store, 30, &blocks(30)));
            disk.crash(survivors);
            let store = open(&disk);
            let found = store.second_newest().unwrap();
            assert!(found.damaged.is_empty() && found.snapshot.is_some(), "after step {step}, {survivors:?}");
        }
    }
}

fn import(
    store: &SnapshotStore,
    pieces: impl IntoIterator<Item = Result<Bytes, Fault>>,
) -> Result<VerifiedImport, Fault> {
    let mut import = store.import()?;
    for piece in pieces {
        import.write(&piece?)?;
    }
    import.verify()
}

#[test]
fn a_snapshot_travels_to_another_member() {
    let (here, there) = (SimDisk::new(), SimDisk::new());
    let (from, to) = (open(&here), open(&there));
    let large = vec![vec![5; 700_000], vec![6; 10]];
    let written = write(&from, 10, &large).unwrap();
    write(&to, 5, &blocks(5)).unwrap();
    let raw = from.raw(id(10)).unwrap();
    assert_eq!(raw.length(), written.file_bytes);
    let verified = import(&to, raw).unwrap();
    assert_eq!(verified.summary(), &written);
    assert_eq!(indexes(&to), [5], "not published before it is judged");
    assert_eq!(verified.read().unwrap().map(Result::unwrap).collect::<Vec<_>>(), large);
    assert_eq!(verified.publish().unwrap(), written);
    assert_eq!(indexes(&to), [10, 5]);
    assert_eq!(there.contents(&path(10)), here.contents(&path(10)));
    // The rest of a download that was cut off.
    let mut rest = from.raw(id(10)).unwrap();
    rest.seek(written.file_bytes - 3);
    assert_eq!(rest.next().unwrap().unwrap().len(), 3);
    assert!(rest.next().is_none());
}

#[test]
fn a_damaged_or_cut_import_is_refused_and_leaves_nothing() {
    let disk = SimDisk::new();
    let store = open(&disk);
    write(&store, 5, &blocks(5)).unwrap();
    let file = small_file();
    for at in [0, 1, 8, 30, file.len() / 2, file.len() - 1] {
        let cut = Bytes::copy_from_slice(&file[..at]);
        assert!(matches!(import(&store, [Ok(cut)]), Err(Fault::Corrupt { .. })), "cut at {at}");
        let mut damaged = file.clone();
        damaged[at] ^= 0x80;
        assert!(matches!(import(&store, [Ok(damaged.into())]), Err(Fault::Corrupt { .. })), "byte {at}");
    }
    drop(import(&store, [Ok(file.into())]).unwrap());
    assert_eq!(disk.list(Path::new(DIR)).unwrap(), [id(5).file_name()]);
}

#[test]
fn an_import_older_than_ours_is_refused() {
    let (here, there) = (SimDisk::new(), SimDisk::new());
    let (from, to) = (open(&here), open(&there));
    write(&from, 4, &blocks(4)).unwrap();
    write(&to, 5, &blocks(5)).unwrap();
    let verified = import(&to, from.raw(id(4)).unwrap()).unwrap();
    assert!(verified.publish().is_err());
    assert_eq!(indexes(&to), [5]);
}

#[test]
fn a_reader_outlives_its_file() {
    let disk = SimDisk::new();
    let store = open(&disk);
    write(&store, 10, &blocks(10)).unwrap();
    let reader = store.read(id(10)).unwrap();
    for index in [20, 30] {
        write(&store, index, &blocks(index)).unwrap();
    }
    assert_eq!(indexes(&store), [30, 20]);
    assert_eq!(reader.map(Result::unwrap).collect::<Vec<_>>(), blocks(10));
}

#[test]
fn other_files_in_the_directory_are_left_alone() {
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new(DIR)).unwrap();
    for name in ["README", "1-1.snap", "x-y.snap", "00000000000000000001.snap"] {
        disk.plant(&Path::new(DIR).join(name), b"mine");
    }
    let store = open(&disk);
    for index in [10, 20, 30] {
        write(&store, index, &blocks(index)).unwrap();
    }
    assert_eq!(disk.list(Path::new(DIR)).unwrap().len(), 6);
    assert_eq!(indexes(&store), [30, 20]);
}

#[test]
fn a_file_that_is_still_read_from_is_freed_when_that_is_over() {
    let disk = SimDisk::new();
    let (store, elsewhere) = (open(&disk), open(&SimDisk::new()));
    let names = || disk.list(Path::new(DIR)).unwrap();
    write(&elsewhere, 10, &large(10)).unwrap();
    // Opened before it got its name.
    let imported = import(&store, elsewhere.raw(id(10)).unwrap()).unwrap();
    let bytes = imported.read().unwrap().bytes();
    imported.publish().unwrap();
    drop(imported);
    let mut whole = vec![0; usize::try_from(bytes.bytes()).unwrap()];
    bytes.read(&mut whole, 0).unwrap();
    for index in [20, 30, 40] {
        write(&store, index, &blocks(index)).unwrap();
        let mut again = vec![0; whole.len()];
        bytes.read(&mut again, 0).unwrap();
        assert!(again == whole, "what is read from has changed");
    }
    assert_eq!((indexes(&store), names().len()), (vec![40, 30], 3));
    drop(bytes);
    write(&store, 50, &blocks(50)).unwrap();
    assert_eq!((indexes(&store), names().len()), (vec![50, 40], 2), "its space is not freed");
}
