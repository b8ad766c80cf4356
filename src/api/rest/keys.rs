//! Keys from paths: bytes, whatever they are, exactly as the raw URI holds them.

use super::query::{Query, percent_decode};
use crate::api::problem::Problem;
use crate::model::Rejection;
use crate::model::limits::KEY_BYTES_MAX;
use base64::Engine as _;
use base64::alphabet::{STANDARD, URL_SAFE};
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
/// With or without padding: shells tend to strip it, libraries tend to add it.
const BASE64URL: GeneralPurpose = GeneralPurpose::new(&URL_SAFE, LENIENT);
const BASE64: GeneralPurpose = GeneralPurpose::new(&STANDARD, LENIENT);

pub(crate) const KEY_ENCODING: &[&str] = &["key_encoding"];

/// The key behind the route's fixed part.
pub(crate) fn from_path(raw: &str, query: &Query) -> Result<Bytes, Problem> {
    let is_base64 = query.choice("key_encoding", &[("percent", false), ("base64url", true)])?.unwrap_or(false);
    let key = if raw.contains('%') {
        let decoded = percent_decode(raw);
        Bytes::from(decoded.ok_or_else(|| Problem::parameter("key", "the key has a malformed percent escape"))?)
    } else {
        Bytes::copy_from_slice(raw.as_bytes())
    };
    if !is_base64 {
        return checked(key);
    }
    let key = BASE64URL.decode(&key).map_err(|_| Problem::parameter("key", "the key is not base64url"))?;
    checked(key.into())
}

pub(crate) fn checked(key: Bytes) -> Result<Bytes, Problem> {
    if key.is_empty() {
        return Err(Rejection::EmptyKey.into());
    }
    if key.len() > KEY_BYTES_MAX {
        return Err(Rejection::KeyTooLong { bytes: key.len() as u64, limit: KEY_BYTES_MAX as u64 }.into());
    }
    Ok(key)
}

/// A `…_base64` member's bytes.
pub(crate) fn from_base64(text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text).ok()
}

pub(crate) fn to_base64url(bytes: &[u8]) -> String {
    base64::prelude::BASE64_URL_SAFE_NO_PAD.encode(bytes)
}

pub(crate) fn from_base64url(text: &str) -> Option<Vec<u8>> {
    BASE64URL.decode(text).ok()
}

#[cfg(test)]
mod tests {
    use super::super::query::Names;
    use super::*;
    use crate::api::status::Code;
    use proptest::prelude::*;

    const NAMES: Names = Names { allowed: &[KEY_ENCODING], later: &[] };

    fn key(raw: &str, query: &str) -> Result<Vec<u8>, Code> {
        let query = Query::parse(Some(query), &NAMES).unwrap();
        from_path(raw, &query).map(|key| key.to_vec()).map_err(|problem| problem.code())
    }

    #[test]
    fn every_byte_arrives_as_it_was_sent() {
        let table: [(&str, &[u8]); 8] = [
            ("app/db/host", b"app/db/host"),
            ("app%2Fdb", b"app/db"),
            ("//a//", b"//a//"),
            ("a+b", b"a+b"),
            ("%00%ff", b"\0\xff"),
            ("%2e%2e/x", b"../x"),
            ("a%25b", b"a%b"),
            ("ä", "ä".as_bytes()),
        ];
        for (raw, expected) in table {
            assert_eq!(key(raw, ""), Ok(expected.to_vec()), "{raw}");
        }
    }

    #[test]
    fn bad_keys_are_refused_each_with_its_code() {
        assert_eq!(key("", ""), Err(Code::EmptyKey));
        assert_eq!(key("a%", ""), Err(Code::InvalidParameter));
        assert_eq!(key("%g0", ""), Err(Code::InvalidParameter));
        assert_eq!(key(&"a".repeat(4096), "").map(|key| key.len()), Ok(4096));
        assert_eq!(key(&"a".repeat(4097), ""), Err(Code::KeyTooLong));
        assert_eq!(key(&"%61".repeat(4096), "").map(|key| key.len()), Ok(4096), "decoded bytes count");
        assert_eq!(key("a", "key_encoding=hex"), Err(Code::InvalidParameter));
    }

    #[test]
    fn base64url_takes_padding_or_not_and_nothing_else() {
        assert_eq!(key("L3JlZ2lzdHJ5Ly4uL3g", "key_encoding=base64url"), Ok(b"/registry/../x".to_vec()));
        assert_eq!(key("YQ%3D%3D", "key_encoding=base64url"), Ok(b"a".to_vec()));
        assert_eq!(key("YQ==", "key_encoding=base64url"), Ok(b"a".to_vec()));
        assert_eq!(key("a/b", "key_encoding=base64url"), Err(Code::InvalidParameter));
        assert_eq!(key("", "key_encoding=base64url"), Err(Code::EmptyKey));
    }

    proptest! {
        #[test]
        fn both_encodings_carry_any_key(bytes in prop::collection::vec(any::<u8>(), 1..64)) {
            let escaped: String = bytes.iter().map(|byte| format!("%{byte:02X}")).collect();
            prop_assert_eq!(key(&escaped, ""), Ok(bytes.clone()));
            prop_assert_eq!(key(&to_base64url(&bytes), "key_encoding=base64url"), Ok(bytes));
        }
    }
}
