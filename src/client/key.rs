//! Keys and other bytes in URLs. A key is the rest of the path, percent-encoded; `/` stays readable.
//! Keys that clients or proxies on the way might rewrite travel as base64url instead.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

/// RFC 3986's unreserved characters stay.
const COMPONENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// In a query value these are harmless too, and prefixes stay readable.
const QUERY_VALUE: &AsciiSet = &COMPONENT.remove(b'/').remove(b':').remove(b',');
const PATH_SEGMENT: &AsciiSet = &COMPONENT.remove(b':').remove(b',').remove(b'@').remove(b'=');

/// Percent-encodes everything but unreserved characters.
#[must_use]
pub fn encode_component(bytes: &[u8]) -> String {
    percent_encode(bytes, COMPONENT).to_string()
}

pub(super) fn encode_query_value(bytes: &[u8]) -> String {
    percent_encode(bytes, QUERY_VALUE).to_string()
}

/// The path's rest for `key`, and whether it needs `key_encoding=base64url`.
///
/// URL libraries resolve `.` and `..` even when percent-encoded, and control bytes are refused by
/// proxies: such keys go as base64url. A slash that proxies would merge with its neighbour goes as `%2F`.
#[must_use]
pub fn encode_key_path(key: &[u8]) -> (String, bool) {
    let segments = || key.split(|byte| *byte == b'/');
    let fragile = key.iter().any(u8::is_ascii_control) || segments().any(|segment| segment == b"." || segment == b"..");
    if fragile {
        return (URL_SAFE_NO_PAD.encode(key), true);
    }
    let mut path = String::with_capacity(key.len());
    for (index, segment) in segments().enumerate() {
        if index > 0 {
            let after_slash = path.is_empty() || path.ends_with('/') || path.ends_with("%2F");
            path.push_str(if after_slash { "%2F" } else { "/" });
        }
        path.extend(percent_encode(segment, PATH_SEGMENT));
    }
    (path, false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use percent_encoding::percent_decode_str;
    use proptest::prelude::*;

    #[test]
    fn ordinary_keys_stay_readable() {
        assert_eq!(encode_key_path(b"app/db/host"), ("app/db/host".to_owned(), false));
        assert_eq!(encode_key_path(b"web/10.0.0.7:8080"), ("web/10.0.0.7:8080".to_owned(), false));
        assert_eq!(encode_key_path("a b?c#d%ü".as_bytes()), ("a%20b%3Fc%23d%25%C3%BC".to_owned(), false));
    }

    #[test]
    fn slashes_that_would_be_merged_are_encoded() {
        assert_eq!(encode_key_path(b"/registry/x").0, "%2Fregistry/x");
        assert_eq!(encode_key_path(b"a//b").0, "a/%2Fb");
        assert_eq!(encode_key_path(b"a/").0, "a/");
        assert_eq!(encode_key_path(b"///").0, "%2F%2F%2F");
    }

    #[test]
    fn fragile_keys_go_as_base64url() {
        for key in [&b"/registry/../x"[..], b".", b"a/./b", b"nul\0", b"tab\t"] {
            let (path, base64url) = encode_key_path(key);
            assert!(base64url);
            assert_eq!(URL_SAFE_NO_PAD.decode(path).unwrap(), key);
        }
        assert!(!encode_key_path(b"...").1);
    }

    proptest! {
        #[test]
        fn every_key_survives_url_parsing(key in proptest::collection::vec(any::<u8>(), 1..40)) {
            let (path, base64url) = encode_key_path(&key);
            let url = reqwest::Url::parse(&format!("http://h/v1/kv/{path}?x")).unwrap();
            let rest = url.path().strip_prefix("/v1/kv/").unwrap().to_owned();
            let back = if base64url {
                URL_SAFE_NO_PAD.decode(rest).unwrap()
            } else {
                percent_decode_str(&rest).collect()
            };
            prop_assert_eq!(back, key);
        }

        #[test]
        fn query_values_survive_url_parsing(value in proptest::collection::vec(any::<u8>(), 0..40)) {
            let url = reqwest::Url::parse(&format!("http://h/v1/kv?p={}", encode_query_value(&value))).unwrap();
            let back: Vec<u8> = percent_decode_str(url.query().unwrap().strip_prefix("p=").unwrap()).collect();
            prop_assert_eq!(back, value);
        }
    }
}
