//! The bytes of one log entry, as the write-ahead log keeps them.
//!
//! version (1 byte), payload kind (1), term (8), node (8), index (8), payload; integers
//! little-endian. A batch's payload is its encoded bytes, unchanged; a membership is `model::codec`.
//! Decoding never panics and copies nothing of a batch.

use super::types::{LogBatch, LogId, Types, log_id, position};
use crate::model::{Fault, LogPosition, codec};
use bytes::Bytes;
use openraft::EntryPayload;
use openraft::alias::EntryOf;

pub(crate) type Entry = EntryOf<Types>;

const FORMAT: u8 = 1;
const HEADER_BYTES: usize = 26;
const BLANK: u8 = 0;
const BATCH: u8 = 1;
const MEMBERSHIP: u8 = 2;

/// # Errors
/// Only if a membership cannot be encoded, which is a fault of ours.
pub(crate) fn encode(entry: &Entry) -> Result<Bytes, Fault> {
    Ok(match &entry.payload {
        EntryPayload::Blank => join(BLANK, &entry.log_id, &[]),
        EntryPayload::Normal(batch) => join(BATCH, &entry.log_id, &batch.bytes),
        EntryPayload::Membership(membership) => join(MEMBERSHIP, &entry.log_id, &codec::encode(membership)?),
    })
}

fn join(kind: u8, log_id: &LogId, payload: &[u8]) -> Bytes {
    let at = position(log_id);
    let mut out = Vec::with_capacity(HEADER_BYTES + payload.len());
    out.extend_from_slice(&[FORMAT, kind]);
    out.extend_from_slice(&at.term.to_le_bytes());
    out.extend_from_slice(&at.node.to_le_bytes());
    out.extend_from_slice(&at.index.to_le_bytes());
    out.extend_from_slice(payload);
    out.into()
}

/// # Errors
/// A fault for anything `encode` did not make.
pub(crate) fn decode(bytes: &Bytes) -> Result<Entry, Fault> {
    let (kind, log_id) = header(bytes)?;
    let payload = bytes.slice(HEADER_BYTES..);
    let payload = match kind {
        BLANK if payload.is_empty() => EntryPayload::Blank,
        BATCH => EntryPayload::Normal(LogBatch { bytes: payload }),
        MEMBERSHIP => EntryPayload::Membership(codec::decode("membership entry", &payload)?),
        _ => return Err(damaged(format!("payload kind {kind} is unknown to this release"))),
    };
    Ok(Entry { log_id, payload })
}

/// The log id alone, without looking at the payload.
pub(crate) fn decode_log_id(bytes: &[u8]) -> Result<LogId, Fault> {
    header(bytes).map(|(_, log_id)| log_id)
}

fn header(bytes: &[u8]) -> Result<(u8, LogId), Fault> {
    let Some(head) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Err(damaged(format!("{} bytes are too few", bytes.len())));
    };
    if head[0] != FORMAT {
        return Err(damaged(format!("format version {} is unknown to this release", head[0])));
    }
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&head[at..at + 8]);
        u64::from_le_bytes(word)
    };
    Ok((head[1], log_id(LogPosition { term: word(2), node: word(10), index: word(18) })))
}

fn damaged(detail: String) -> Fault {
    Fault::corrupt("log entry", detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raft::types::Member;
    use openraft::Membership;
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    fn id(term: u64, node: u64, index: u64) -> LogId {
        log_id(LogPosition { term, node, index })
    }

    #[test]
    fn every_payload_survives() {
        let member = Member { name: "a".into(), peer_url: "p".into(), client_url: "c".into(), incarnation: u128::MAX };
        let membership = Membership::new(vec![BTreeSet::from([7])], BTreeMap::from([(7, member)])).unwrap();
        for payload in [
            EntryPayload::Blank,
            EntryPayload::Normal(LogBatch { bytes: Bytes::from_static(b"batch") }),
            EntryPayload::Membership(membership),
        ] {
            let entry = Entry { log_id: id(3, 7, 11), payload };
            let bytes = encode(&entry).unwrap();
            assert_eq!(decode(&bytes).unwrap(), entry);
            assert_eq!(decode_log_id(&bytes).unwrap(), entry.log_id);
        }
    }

    #[test]
    fn foreign_bytes_are_faults() {
        let good = encode(&Entry { log_id: id(1, 2, 3), payload: EntryPayload::Blank }).unwrap();
        for (at, to) in [(0, 2), (1, 9)] {
            let mut bad = good.to_vec();
            bad[at] = to;
            assert!(decode(&bad.into()).is_err());
        }
        assert!(decode(&good.slice(..25)).is_err());
    }

    proptest! {
        #[test]
        fn decoding_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            drop(decode(&bytes.into()));
        }

        #[test]
        fn positions_survive(term: u64, node: u64, index: u64) {
            let at = LogPosition { term, node, index };
            prop_assert_eq!(position(&log_id(at)), at);
        }
    }
}
