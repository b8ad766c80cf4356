//! Cursors of listings: the revision of the first page, where the next one resumes, and which query
//! they belong to. Opaque to clients; a cursor only says where to go on in a listing that its bearer
//! may make anyhow, so its form is checked and nothing is signed.

use super::keys::{from_base64url, to_base64url};
use crate::api::problem::Problem;
use crate::api::status::Code;
use crate::model::Revision;
use bytes::Bytes;
use sha2::{Digest, Sha256};

const VERSION: u8 = 1;
const FILTER_BYTES: usize = 8;
const HEAD_BYTES: usize = 1 + 8 + FILTER_BYTES;

/// The digest of what must not change between pages.
pub(crate) type FilterHash = [u8; FILTER_BYTES];

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cursor {
    pub(crate) revision: Revision,
    pub(crate) filter: FilterHash,
    pub(crate) resume: Bytes,
}

/// Hashes parts so that no two lists of parts collide by concatenation.
pub(crate) fn filter_hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> FilterHash {
    let mut digest = Sha256::new();
    for part in parts {
        digest.update((part.len() as u64).to_be_bytes());
        digest.update(part);
    }
    let mut hash = [0; FILTER_BYTES];
    hash.copy_from_slice(&digest.finalize()[..FILTER_BYTES]);
    hash
}

impl Cursor {
    pub(crate) fn encode(&self) -> String {
        let mut bytes = Vec::with_capacity(HEAD_BYTES + self.resume.len());
        bytes.push(VERSION);
        bytes.extend_from_slice(&self.revision.to_be_bytes());
        bytes.extend_from_slice(&self.filter);
        bytes.extend_from_slice(&self.resume);
        to_base64url(&bytes)
    }

    /// Refuses what we did not make, and what we made for another query.
    pub(crate) fn decode(text: &str, filter: FilterHash) -> Result<Self, Problem> {
        let bytes = from_base64url(text).ok_or_else(|| bad("this is not a cursor"))?;
        let (head, resume) = bytes.split_at_checked(HEAD_BYTES).ok_or_else(|| bad("the cursor is cut short"))?;
        if head[0] != VERSION {
            return Err(bad("the cursor is of another release"));
        }
        let revision: [u8; 8] = head[1..9].try_into().map_err(|_| bad("the cursor is cut short"))?;
        let revision = Revision::from_be_bytes(revision);
        if revision < 1 || resume.is_empty() {
            return Err(bad("this is not a cursor"));
        }
        if head[9..] != filter {
            return Err(bad("the cursor belongs to another query"));
        }
        Ok(Self { revision, filter, resume: Bytes::copy_from_slice(resume) })
    }
}

fn bad(detail: &str) -> Problem {
    Problem::new(Code::BadCursor, detail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_cursor_comes_back(revision in 1..i64::MAX, resume in prop::collection::vec(any::<u8>(), 1..80)) {
            let filter = filter_hash([&b"app/"[..]]);
            let cursor = Cursor { revision, filter, resume: resume.into() };
            prop_assert_eq!(Cursor::decode(&cursor.encode(), filter).unwrap(), cursor);
        }

        #[test]
        fn foreign_bytes_never_panic(text in "[A-Za-z0-9_=%-]{0,60}") {
            let _verdict = Cursor::decode(&text, [0; 8]).map(drop);
        }
    }

    #[test]
    fn damaged_and_foreign_cursors_are_refused() {
        let filter = filter_hash([&b"a"[..]]);
        let good = Cursor { revision: 7, filter, resume: "a/1".into() };
        let text = good.encode();
        let refused = |text: &str, filter| Cursor::decode(text, filter).unwrap_err().code();
        assert_eq!(refused(&text, filter_hash([&b"b"[..]])), Code::BadCursor);
        assert_eq!(refused(&text[..10], filter), Code::BadCursor);
        assert_eq!(refused("", filter), Code::BadCursor);
        assert_eq!(refused("!", filter), Code::BadCursor);
        assert_eq!(refused(&Cursor { revision: 0, ..good.clone() }.encode(), filter), Code::BadCursor);
        assert_eq!(refused(&Cursor { resume: Bytes::new(), ..good }.encode(), filter), Code::BadCursor);
    }

    #[test]
    fn filters_do_not_collide_by_concatenation() {
        assert_ne!(filter_hash([&b"ab"[..], b"c"]), filter_hash([&b"a"[..], b"bc"]));
    }
}
