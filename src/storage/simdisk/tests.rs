//! The simulated disk itself: what it loses, what it keeps, what it refuses.

use super::*;

fn disk_with(name: &str) -> (SimDisk, Arc<dyn DiskFile>) {
    let disk = SimDisk::new();
    disk.create_dir_all(Path::new("/d")).unwrap();
    let file = disk.create(&Path::new("/d").join(name)).unwrap();
    (disk, file)
}

fn path(name: &str) -> PathBuf {
    Path::new("/d").join(name)
}

#[test]
fn a_crash_loses_what_was_not_synced() {
    let (disk, file) = disk_with("a");
    file.write_at(b"kept", 0).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir(Path::new("/d")).unwrap();
    file.write_at(b"lost", 5000).unwrap();
    disk.create(&path("b")).unwrap();
    disk.rename(&path("a"), &path("c")).unwrap();
    assert_eq!(disk.list(Path::new("/d")).unwrap(), ["b", "c"]);
    disk.crash(Survivors::Nothing);
    assert_eq!(disk.list(Path::new("/d")).unwrap(), ["a"]);
    assert_eq!(disk.contents(&path("a")).unwrap(), b"kept");
    assert!(file.write_at(b"x", 0).is_err(), "handles from before the crash are dead");
}

#[test]
fn a_synced_file_without_a_synced_directory_is_gone() {
    let (disk, file) = disk_with("a");
    file.write_at(b"data", 0).unwrap();
    file.sync_data().unwrap();
    disk.crash(Survivors::Nothing);
    assert!(disk.list(Path::new("/d")).unwrap().is_empty());
}

#[test]
fn seeds_choose_different_pages_and_replay() {
    let mut seen = BTreeSet::new();
    for seed in 0..40 {
        let run = || {
            let (disk, file) = disk_with("a");
            file.allocate(4 * 4096).unwrap();
            file.sync_data().unwrap();
            disk.sync_dir(Path::new("/d")).unwrap();
            file.write_at(&[7; 4 * 4096], 0).unwrap();
            disk.crash(Survivors::Seeded(seed));
            disk.contents(&path("a")).unwrap()
        };
        let bytes = run();
        assert_eq!(bytes, run());
        assert!(bytes.chunks(4096).all(|page| page == [7; 4096] || page == [0; 4096]), "a page is kept or lost whole");
        seen.insert(bytes);
    }
    assert!(seen.len() > 8, "only {} of 16 subsets were seen", seen.len());
}

#[test]
fn everything_survives_when_asked() {
    let (disk, file) = disk_with("a");
    file.write_at(b"data", 3).unwrap();
    disk.rename(&path("a"), &path("b")).unwrap();
    disk.crash(Survivors::Everything);
    assert_eq!(disk.contents(&path("b")).unwrap(), b"\0\0\0data");
}

#[test]
fn a_failed_sync_is_not_made_good_by_the_next_one() {
    let (disk, file) = disk_with("a");
    disk.sync_dir(Path::new("/d")).unwrap();
    file.write_at(b"data", 0).unwrap();
    disk.inject(disk.operations(), Injected::Eio);
    assert!(file.sync_data().is_err());
    file.sync_data().unwrap();
    assert_eq!(disk.contents(&path("a")).unwrap(), b"data", "readable from the page cache");
    disk.crash(Survivors::Everything);
    assert_eq!(disk.contents(&path("a")).unwrap(), b"\0\0\0\0");
}

#[test]
fn faults_hit_the_operation_they_were_meant_for() {
    let (disk, file) = disk_with("a");
    disk.inject(2, Injected::ShortWrite(2));
    disk.inject(3, Injected::Enospc);
    disk.cut_after(4);
    file.write_at(b"abcd", 0).unwrap();
    assert!(file.write_at(b"xyz", 0).is_err());
    assert_eq!(disk.contents(&path("a")).unwrap(), b"xycd");
    assert_eq!(file.write_at(b"1", 0).unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert!(file.sync_data().is_err(), "the power is off");
    assert_eq!(disk.operations(), 4);
    disk.restart_process();
    let file = disk.open(&path("a")).unwrap();
    file.write_at(b"ok", 0).unwrap();
    assert_eq!(disk.contents(&path("a")).unwrap(), b"okcd");
}

#[test]
fn capacity_is_enforced_and_freed() {
    let (disk, file) = disk_with("a");
    disk.set_capacity(Some(3 * 4096));
    file.allocate(2 * 4096).unwrap();
    assert_eq!(disk.free_bytes(Path::new("/d")).unwrap(), 4096);
    assert_eq!(file.allocate(4 * 4096).unwrap_err().kind(), io::ErrorKind::StorageFull);
    file.write_at(&[1; 4096], 4096).unwrap();
    disk.remove(&path("a")).unwrap();
    assert_eq!(disk.free_bytes(Path::new("/d")).unwrap(), 3 * 4096);
}

#[test]
fn a_cut_file_reads_zeros_when_it_grows_again() {
    let (_disk, file) = disk_with("a");
    file.write_at(&[9; 9000], 0).unwrap();
    file.set_len(10).unwrap();
    file.set_len(9000).unwrap();
    let mut buf = vec![1; 9000];
    assert_eq!(file.read_at(&mut buf, 0).unwrap(), 9000);
    assert_eq!(&buf[..10], &[9; 10]);
    assert!(buf[10..].iter().all(|byte| *byte == 0));
}

#[test]
fn a_fork_goes_its_own_way() {
    let (disk, file) = disk_with("a");
    let copy = disk.fork();
    file.write_at(b"later", 0).unwrap();
    assert_eq!(copy.contents(&path("a")).unwrap(), b"");
}
