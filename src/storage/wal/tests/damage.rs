//! A log cut, flipped, zeroed, overwritten or repeated at every byte.

use super::harness::*;
use crate::storage::disk::Disk;
use crate::storage::mutant::Mutant;
use crate::storage::simdisk::{SimDisk, Survivors};
use crate::storage::wal::segment::HEADER_BYTES;
use crate::storage::wal::{WalError, record};
use std::path::{Path, PathBuf};

const SEGMENT: u64 = 8192;

/// A log in one segment, with the place of every record.
struct Specimen {
    driver: Driver,
    path: PathBuf,
    bytes: Vec<u8>,
    /// End of each record, and the call it completes.
    records: Vec<(usize, usize)>,
    last_group: usize,
    end: usize,
}

fn specimen() -> Specimen {
    let mut driver = Driver::open(&SimDisk::new(), SEGMENT, None).unwrap();
    let path = Path::new(DIR).join("0000000001.wal");
    let start = end_of_data(&driver.disk.contents(&path).unwrap());
    let mut records = vec![(start, 0)];
    let mut last_group = start;
    let groups: Vec<Vec<Call>> = vec![
        vec![Call::Vote],
        vec![Call::Append(vec![100]), Call::Append(vec![33])],
        vec![Call::Append(vec![61]), Call::Truncate(2), Call::Append(vec![0]), Call::Append(vec![300])],
        vec![Call::Purge(0), Call::Vote],
        vec![Call::Append(vec![200]), Call::Vote, Call::Append(vec![120]), Call::Truncate(3), Call::Append(vec![77])],
    ];
    for group in groups {
        last_group = records.last().unwrap().0;
        for call in group {
            let payload = match &call {
                Call::Append(lengths) => lengths[0],
                Call::Truncate(_) => 0,
                _ => 16,
            };
            driver.call(&call);
            let end = records.last().unwrap().0 + record::footprint(payload);
            records.push((end, driver.history.len() - 1));
        }
        driver.wal.pump();
    }
    let bytes = driver.disk.contents(&path).unwrap();
    let end = records.last().unwrap().0;
    assert!(bytes[end..].iter().all(|byte| *byte == 0) && bytes[last_group] != 0, "the records are where expected");
    driver.wal.abandon();
    Specimen { driver, path, bytes, records, last_group, end }
}

fn end_of_data(bytes: &[u8]) -> usize {
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1;
    end.next_multiple_of(record::ALIGNMENT)
}

impl Specimen {
    fn disk_with(&self, bytes: &[u8]) -> SimDisk {
        let disk = SimDisk::new();
        disk.create_dir_all(Path::new(DIR)).unwrap();
        disk.plant(&self.path, bytes);
        disk
    }

    /// The newest call whose records all end at or before `at`.
    fn call_before(&self, at: usize) -> usize {
        self.records.iter().rev().find(|(end, _)| *end <= at).map_or(0, |(_, call)| *call)
    }

    fn open(&self, bytes: &[u8], mutant: Option<Mutant>) -> Result<(Driver, usize), String> {
        let disk = self.disk_with(bytes);
        let opened = Driver::open(&disk, SEGMENT, mutant).map_err(|error| error.to_string())?;
        let found = self.driver.history.iter().rposition(|model| model.same_as(opened.newest()));
        let found = found.unwrap_or_else(|| panic!("recovered what never was: {:?}", opened.newest()));
        Ok((opened, found))
    }

    /// Bytes changed from `from` on, and a log that lost no more than the records there; what is
    /// appended to it is not disturbed by the garbage.
    fn keeps_prefix(&self, bytes: &[u8], from: usize) {
        let (mut opened, found) = self.open(bytes, None).unwrap_or_else(|error| panic!("changed from {from}: {error}"));
        let expected = self.call_before(from);
        assert!(found >= expected, "changed from {from}: call {found} instead of {expected}");
        opened.serial = 1 << 40;
        opened.run(&[Call::Append(vec![9])]);
        opened.disk.crash(Survivors::Nothing);
        opened.wal.abandon();
        check(&opened, &opened.disk, SEGMENT, None).unwrap();
    }

    fn is_refused(&self, bytes: &[u8], what: &str) {
        let disk = self.disk_with(bytes);
        let before = disk.operations();
        assert!(Driver::open(&disk, SEGMENT, None).is_err(), "{what} was not noticed");
        let trace = disk.trace().split_off(usize::try_from(before).unwrap());
        assert!(trace.iter().all(|(_, path)| !path.starts_with(DIR)), "{what}: a refused log is left alone");
        assert_eq!(disk.contents(&self.path).unwrap(), bytes);
    }
}

/// Damage before the last group is refused; in it, the records before it are kept.
pub(super) fn flip_every_byte(mutant: Option<Mutant>) -> Result<(), String> {
    let specimen = specimen();
    for at in 0..specimen.end + 64 {
        let mut bytes = specimen.bytes.clone();
        bytes[at] ^= 1 << (at % 8);
        match specimen.open(&bytes, mutant) {
            Ok((opened, found)) => {
                opened.wal.abandon();
                if at < specimen.last_group {
                    return Err(format!("byte {at} of what was durable was flipped and call {found} recovered"));
                }
                let containing = specimen.call_before(at);
                if found != containing {
                    return Err(format!("byte {at} flipped: call {found} instead of {containing}"));
                }
            }
            Err(error) if at >= specimen.last_group => return Err(format!("byte {at} of a torn end: {error}")),
            Err(_) => {}
        }
    }
    Ok(())
}

#[test]
fn one_flipped_bit_at_every_byte() {
    flip_every_byte(None).unwrap();
}

#[test]
fn a_flipped_bit_in_durable_data_is_refused_untouched() {
    let specimen = specimen();
    for at in (0..specimen.last_group).step_by(11) {
        let mut bytes = specimen.bytes.clone();
        bytes[at] ^= 0x80;
        specimen.is_refused(&bytes, &format!("flip at {at}"));
    }
}

/// Where the first segment's checkpoint ends: before it, nothing is a torn write.
fn first_tearable(specimen: &Specimen) -> usize {
    let checkpoint = crate::storage::wal::record::Checkpoint::default().encode();
    let end = HEADER_BYTES + record::footprint(checkpoint.len());
    assert!(end <= specimen.records[0].0);
    end
}

#[test]
fn zeros_from_every_byte_on() {
    let specimen = specimen();
    let tearable = first_tearable(&specimen);
    for at in 0..specimen.end {
        let mut bytes = specimen.bytes.clone();
        bytes[at..].fill(0);
        if bytes[..tearable] == specimen.bytes[..tearable] {
            specimen.keeps_prefix(&bytes, at.max(tearable));
        } else {
            specimen.is_refused(&bytes, &format!("zeros from {at}"));
        }
    }
}

#[test]
fn garbage_from_every_byte_on() {
    let specimen = specimen();
    let mut noise = 0x1234_5678_u32;
    for at in (first_tearable(&specimen)..specimen.end + 100).step_by(3) {
        let mut bytes = specimen.bytes.clone();
        for byte in &mut bytes[at..] {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = noise.to_le_bytes()[3];
        }
        specimen.keeps_prefix(&bytes, at);
    }
}

#[test]
fn a_file_cut_at_every_byte_is_refused() {
    // Files are allocated before they get their name: no crash makes one shorter.
    let specimen = specimen();
    for at in 0..specimen.bytes.len() {
        if at % 5 == 0 || at < 100 {
            specimen.is_refused(&specimen.bytes[..at], &format!("cut at {at}"));
        }
    }
}

#[test]
fn the_last_block_written_twice() {
    let specimen = specimen();
    for block in [8, 64, 512] {
        for at in (specimen.end..specimen.end + 600).step_by(8) {
            let mut bytes = specimen.bytes.clone();
            bytes.copy_within(specimen.end - block..specimen.end, at);
            specimen.keeps_prefix(&bytes, at);
        }
        let blocks = specimen.end / block;
        let mut bytes = specimen.bytes.clone();
        bytes.copy_within((blocks - 1) * block..blocks * block, blocks * block);
        specimen.keeps_prefix(&bytes, blocks * block);
    }
}

#[test]
fn records_of_another_segment_are_not_taken_for_this_ones() {
    let specimen = specimen();
    let mut driver = Driver::open(&SimDisk::new(), SEGMENT, None).unwrap();
    driver.run(&vec![Call::Append(vec![1000]); 10]);
    driver.wal.abandon();
    let other = driver.disk.contents(&Path::new(DIR).join("0000000002.wal")).unwrap();
    let mut bytes = specimen.bytes.clone();
    let end = specimen.end;
    bytes[end..].copy_from_slice(&other[end..]);
    specimen.keeps_prefix(&bytes, end);
}

fn several_segments() -> Driver {
    let mut driver = Driver::open(&SimDisk::new(), 2048, None).unwrap();
    driver.run(&[Call::Vote]);
    for _ in 0..12 {
        driver.run(&[Call::Append(vec![500])]);
    }
    driver.wal.close();
    assert!(segment_files(&driver.disk).len() >= 4);
    driver
}

fn refusal(disk: &SimDisk) -> WalError {
    Driver::open(disk, 2048, None).err().expect("it is refused")
}

#[test]
fn a_flipped_bit_in_an_older_segment_is_refused() {
    let driver = several_segments();
    let path = Path::new(DIR).join("0000000002.wal");
    let bytes = driver.disk.contents(&path).unwrap();
    for at in 0..end_of_data(&bytes) {
        let disk = driver.disk.fork();
        let mut bad = bytes.clone();
        bad[at] ^= 4;
        disk.plant(&path, &bad);
        refusal(&disk);
    }
    for at in (HEADER_BYTES..end_of_data(&bytes)).step_by(8) {
        let disk = driver.disk.fork();
        let mut bad = bytes.clone();
        bad[at..].fill(0);
        disk.plant(&path, &bad);
        assert!(matches!(refusal(&disk), WalError::DamagedMiddle { segment: 2, .. }));
    }
}

#[test]
fn a_missing_segment_is_refused() {
    let driver = several_segments();
    let names = segment_files(&driver.disk);
    for name in &names[..names.len() - 1] {
        let disk = driver.disk.fork();
        disk.remove(&Path::new(DIR).join(name)).unwrap();
        assert!(matches!(refusal(&disk), WalError::MissingSegment { .. }), "{name}");
    }
}

#[test]
fn a_swapped_or_foreign_segment_is_refused() {
    let driver = several_segments();
    let read = |disk: &SimDisk, name: &str| disk.contents(&Path::new(DIR).join(name)).unwrap();
    let disk = driver.disk.fork();
    disk.plant(&Path::new(DIR).join("0000000002.wal"), &read(&disk, "0000000003.wal"));
    assert!(matches!(refusal(&disk), WalError::Misnamed { segment: 2, header: 3 }));

    let mut other = Driver::open(&SimDisk::new(), 2048, None).unwrap();
    other.serial = 1 << 30;
    other.run(&vec![Call::Append(vec![500]); 12]);
    let disk = driver.disk.fork();
    disk.plant(&Path::new(DIR).join("0000000003.wal"), &read(&other.disk, "0000000003.wal"));
    refusal(&disk);

    let disk = driver.disk.fork();
    let mut bytes = read(&disk, "0000000001.wal");
    bytes[8] = 2;
    let crc = crc32c::crc32c(&bytes[..60]);
    bytes[60..64].copy_from_slice(&crc.to_le_bytes());
    disk.plant(&Path::new(DIR).join("0000000001.wal"), &bytes);
    assert!(matches!(refusal(&disk), WalError::ForeignVersion { segment: 1, version: 2 }));
}

#[test]
fn leftovers_of_an_interrupted_purge_are_removed() {
    let mut driver = Driver::open(&SimDisk::new(), 2048, None).unwrap();
    driver.run(&vec![Call::Append(vec![500]); 14]);
    let before = driver.disk.fork();
    driver.run(&[Call::Purge(8)]);
    driver.wal.abandon();
    let kept = segment_files(&driver.disk);
    let old: Vec<String> = segment_files(&before).into_iter().filter(|name| !kept.contains(name)).collect();
    assert!(old.len() >= 3, "{old:?}");
    for subset in 0..1_u32 << old.len() {
        let disk = driver.disk.fork();
        for (bit, name) in old.iter().enumerate() {
            let path = Path::new(DIR).join(name);
            if subset >> bit & 1 == 1 {
                disk.plant(&path, &before.contents(&path).unwrap());
            }
        }
        check(&driver, &disk, 2048, None).unwrap();
        assert_eq!(segment_files(&disk), kept, "subset {subset:b}");
    }
}
