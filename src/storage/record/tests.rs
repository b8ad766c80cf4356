//! The format of records and blocks: round trips, golden bytes, and damage of every kind.

use super::*;
use proptest::prelude::*;

fn kinds() -> impl Strategy<Value = RecordKind> {
    prop_oneof![
        Just(RecordKind::Put),
        Just(RecordKind::Tombstone(DeleteReason::Deleted)),
        Just(RecordKind::Tombstone(DeleteReason::Expired)),
        Just(RecordKind::Tombstone(DeleteReason::LeaseRevoked)),
    ]
}

fn bytes(max: usize) -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..max).prop_map(Bytes::from)
}

prop_compose! {
    fn records()(
        kind in kinds(),
        main in any::<i64>(),
        sub in any::<u32>(),
        create_revision in any::<i64>(),
        version in any::<i64>(),
        lease in prop_oneof![Just(0), any::<i64>()],
        content_type in prop::option::of("[a-zä/]{0,200}"),
        key in bytes(300),
        value in bytes(3000),
    ) -> Record {
        let content_type = content_type.map(Arc::from);
        Record { main, sub, kind, create_revision, version, lease, content_type, key, value }
    }
}

fn sorted() -> impl Strategy<Value = Vec<Arc<Record>>> {
    prop::collection::vec(records(), 1..20).prop_map(|mut records| {
        records.sort_by_key(Record::place);
        records.dedup_by_key(|record| record.place());
        records.into_iter().map(Arc::new).collect()
    })
}

/// Everything a reader does with bytes it believes to be a block.
fn read_all(bytes: Bytes) -> Result<usize, Fault> {
    let block = Block::open(bytes)?;
    let mut seen = 0;
    block.for_each(|record| seen += record.key.len() + record.value.len())?;
    block.records_from((i64::MIN, 0))?;
    block.find((i64::MAX, u32::MAX))?;
    Ok(seen)
}

/// A block with a right checksum, header and length around any body.
fn framed(count: u32, first: Place, body: &[u8]) -> Bytes {
    let mut out = vec![FORMAT];
    out.extend_from_slice(&count.to_le_bytes());
    out.extend_from_slice(&first.0.to_le_bytes());
    out.extend_from_slice(&first.1.to_le_bytes());
    out.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
    out.extend_from_slice(body);
    let crc = crc32c::crc32c(&out);
    out.extend_from_slice(&crc.to_le_bytes());
    out.into()
}

fn record(main: i64, sub: u32, value: &[u8]) -> Arc<Record> {
    Arc::new(Record {
        main,
        sub,
        kind: RecordKind::Put,
        create_revision: main,
        version: 1,
        lease: 0,
        content_type: None,
        key: Bytes::from_static(b"key"),
        value: Bytes::copy_from_slice(value),
    })
}

proptest! {
    #[test]
    fn a_block_gives_back_its_records(records in sorted()) {
        let block = Block::open(encode_block(&records).unwrap()).unwrap();
        prop_assert_eq!(block.first(), records[0].place());
        prop_assert_eq!(block.count() as usize, records.len());
        prop_assert_eq!(&block.records_from((i64::MIN, 0)).unwrap(), &records);
        let mut shared = Vec::new();
        block.for_each(|record| shared.push(Arc::new(record))).unwrap();
        prop_assert_eq!(&shared, &records);
        for (position, record) in records.iter().enumerate() {
            let found = block.find(record.place()).unwrap();
            prop_assert_eq!(found.as_ref(), Some(&**record));
            prop_assert_eq!(&block.records_from(record.place()).unwrap()[..], &records[position..]);
            let (main, sub) = record.place();
            if let Some(next) = sub.checked_add(1).filter(|sub| records.get(position + 1).is_none_or(|r| r.place() != (main, *sub))) {
                prop_assert_eq!(block.find((main, next)).unwrap(), None);
            }
        }
    }

    #[test]
    fn weights_are_near_the_encoded_size(records in sorted()) {
        let weight: usize = records.iter().map(|record| record.weight()).sum();
        let size = encode_block(&records).unwrap().len() - HEADER_BYTES - TRAILER_BYTES;
        prop_assert!(weight + 40 * records.len() >= size && size + 40 * records.len() >= weight, "{} {}", weight, size);
    }

    #[test]
    fn garbage_is_refused(garbage in bytes(4000)) {
        prop_assert!(read_all(garbage).is_err());
    }

    #[test]
    fn garbage_behind_a_right_checksum_is_refused_or_read_without_harm(
        count in prop_oneof![0u32..50, any::<u32>()], main in any::<i64>(), sub in any::<u32>(), body in bytes(2000),
    ) {
        if let Ok(seen) = read_all(framed(count, (main, sub), &body)) {
            prop_assert!(seen <= body.len());
        }
    }

    #[test]
    fn mutated_bodies_behind_a_right_checksum_do_no_harm(
        records in sorted(), at in any::<prop::sample::Index>(), with in any::<u8>(), count in 0u32..25,
    ) {
        let block = encode_block(&records).unwrap();
        let mut body = block[HEADER_BYTES..block.len() - TRAILER_BYTES].to_vec();
        let at = at.index(body.len());
        body[at] = with;
        if let Ok(seen) = read_all(framed(count, records[0].place(), &body)) {
            prop_assert!(seen <= body.len());
        }
    }
}

#[test]
fn every_flipped_bit_and_every_cut_is_detected() {
    let records = [record(5, 0, b"one"), record(5, 1, b""), record(900, 0, &[7; 200])];
    let block = encode_block(&records).unwrap();
    assert!(read_all(block.clone()).is_ok());
    for at in 0..block.len() {
        assert!(read_all(block.slice(..at)).is_err(), "cut at {at}");
        for bit in 0..8 {
            let mut damaged = block.to_vec();
            damaged[at] ^= 1 << bit;
            assert!(read_all(damaged.into()).is_err(), "bit {bit} of byte {at}");
        }
    }
    let mut longer = block.to_vec();
    longer.push(0);
    assert!(read_all(longer.into()).is_err());
}

#[test]
fn a_huge_promised_count_or_length_allocates_nothing() {
    assert!(read_all(framed(u32::MAX, (1, 0), &[])).is_err());
    // A record of 2^62 bytes.
    assert!(read_all(framed(1, (1, 0), &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x3f])).is_err());
    // A varint that never ends, and one beyond 64 bits.
    assert!(read_all(framed(1, (1, 0), &[0xff; 40])).is_err());
    assert!(read_all(framed(1, (1, 0), &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x02])).is_err());
}

#[test]
fn a_foreign_format_says_so() {
    let mut block = encode_block(&[record(1, 0, b"v")]).unwrap().to_vec();
    block[0] = 2;
    let fault = Block::open(block.into()).unwrap_err();
    assert!(fault.to_string().contains("format version"), "{fault}");
}

#[test]
fn only_rising_records_make_a_block() {
    assert!(encode_block(&[]).is_err());
    assert!(encode_block(&[record(2, 0, b""), record(1, 0, b"")]).is_err());
    assert!(encode_block(&[record(2, 0, b""), record(2, 0, b"")]).is_err());
    assert!(encode_block(&[record(2, 0, b""), record(2, 1, b"")]).is_ok());
}

#[test]
fn a_small_record_does_not_keep_its_block_alive() {
    let records: Vec<_> = (0..50).map(|main| record(main, 0, &[1; 100])).collect();
    let bytes = encode_block(&records).unwrap();
    let range = bytes.as_ptr_range();
    let block = Block::open(bytes.clone()).unwrap();
    let found = block.find((7, 0)).unwrap().unwrap();
    assert!(!range.contains(&found.value.as_ptr()) && !range.contains(&found.key.as_ptr()));
}
