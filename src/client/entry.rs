//! Entries as the API's JSON spells them: `key` or `key_base64`, `value` or `value_base64`, never both.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entry {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_base64: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content_type: Option<String>,
    pub create_revision: i64,
    pub mod_revision: i64,
    pub version: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
}

impl Entry {
    #[must_use]
    pub fn key_bytes(&self) -> Vec<u8> {
        BytesForm { text: self.key.as_deref(), base64: self.key_base64.as_deref() }.bytes()
    }

    #[must_use]
    pub fn value_bytes(&self) -> Vec<u8> {
        BytesForm { text: self.value.as_deref(), base64: self.value_base64.as_deref() }.bytes()
    }

    /// Bytes of the value, whether or not it was sent.
    #[must_use]
    pub fn value_len(&self) -> u64 {
        self.size.unwrap_or_else(|| u64::try_from(self.value_bytes().len()).unwrap_or(u64::MAX))
    }
}

/// One of the two spellings of some bytes.
#[derive(Debug, Clone, Copy)]
pub struct BytesForm<'a> {
    pub text: Option<&'a str>,
    pub base64: Option<&'a str>,
}

impl BytesForm<'_> {
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        match (self.text, self.base64) {
            (Some(text), _) => text.as_bytes().to_vec(),
            (None, Some(base64)) => STANDARD.decode(base64).unwrap_or_default(),
            (None, None) => Vec::new(),
        }
    }
}

/// The member that spells `bytes` in JSON, such as `("value_base64", "/w==")`.
#[must_use]
pub fn form_of(name: &str, bytes: &[u8]) -> (String, String) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (name.to_owned(), text.to_owned()),
        Err(_) => (format!("{name}_base64"), STANDARD.encode(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings() {
        let entry: Entry =
            serde_json::from_str(r#"{"key":"k","value_base64":"//8=","mod_revision":3,"new_member":1}"#).unwrap();
        assert_eq!(entry.key_bytes(), b"k");
        assert_eq!(entry.value_bytes(), b"\xff\xff");
        assert_eq!((entry.value_len(), entry.mod_revision), (2, 3));
        assert_eq!(form_of("value", b"\xff\xff"), ("value_base64".to_owned(), "//8=".to_owned()));
        assert_eq!(form_of("key", b"k"), ("key".to_owned(), "k".to_owned()));
        let listed: Entry = serde_json::from_str(r#"{"key":"k","size":70}"#).unwrap();
        assert_eq!(listed.value_len(), 70);
    }
}
