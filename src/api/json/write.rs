//! Building JSON answers into one buffer.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

/// Pushes members and items; commas are its business, matching brackets the caller's.
#[derive(Debug, Default)]
pub(crate) struct Writer {
    buffer: Vec<u8>,
    needs_comma: bool,
}

impl Writer {
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self { buffer: Vec::with_capacity(bytes), needs_comma: false }
    }

    pub(crate) fn len(&self) -> usize {
        self.buffer.len()
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.buffer
    }

    fn separate(&mut self) {
        if self.needs_comma {
            self.buffer.push(b',');
        }
        self.needs_comma = false;
    }

    /// `{`, as an item or as what `name` announced.
    pub(crate) fn open(&mut self) {
        self.separate();
        self.buffer.push(b'{');
    }

    pub(crate) fn close(&mut self) {
        self.buffer.push(b'}');
        self.needs_comma = true;
    }

    pub(crate) fn open_list(&mut self) {
        self.separate();
        self.buffer.push(b'[');
    }

    pub(crate) fn close_list(&mut self) {
        self.buffer.push(b']');
        self.needs_comma = true;
    }

    /// Ends a line of NDJSON.
    pub(crate) fn newline(&mut self) {
        self.buffer.push(b'\n');
        self.needs_comma = false;
    }

    /// Bytes between JSON texts, as they are.
    pub(crate) fn plain(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        self.needs_comma = false;
    }

    /// A member's name; its value must follow. Names are ours: plain ASCII.
    pub(crate) fn name(&mut self, name: &str) {
        self.separate();
        self.buffer.push(b'"');
        self.buffer.extend_from_slice(name.as_bytes());
        self.buffer.extend_from_slice(b"\":");
    }

    pub(crate) fn item_text(&mut self, text: &str) {
        self.separate();
        push_string(&mut self.buffer, text);
        self.needs_comma = true;
    }

    pub(crate) fn item_raw(&mut self, json: &[u8]) {
        self.separate();
        self.buffer.extend_from_slice(json);
        self.needs_comma = true;
    }

    pub(crate) fn text(&mut self, name: &str, text: &str) {
        self.name(name);
        self.item_text(text);
    }

    pub(crate) fn int(&mut self, name: &str, value: i64) {
        self.name(name);
        let mut digits = itoa(value.unsigned_abs());
        if value < 0 {
            digits.push(b'-');
        }
        digits.reverse();
        self.item_raw(&digits);
    }

    pub(crate) fn count(&mut self, name: &str, value: u64) {
        self.name(name);
        let mut digits = itoa(value);
        digits.reverse();
        self.item_raw(&digits);
    }

    pub(crate) fn bool(&mut self, name: &str, value: bool) {
        self.raw(name, if value { b"true" } else { b"false" });
    }

    /// `json` is JSON already.
    pub(crate) fn raw(&mut self, name: &str, json: &[u8]) {
        self.name(name);
        self.item_raw(json);
    }

    /// Bytes as a string under `name` if they are UTF-8, else as base64 under `base64_name`.
    pub(crate) fn bytes(&mut self, name: &str, base64_name: &str, bytes: &[u8]) {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.text(name, text),
            Err(_) => self.text(base64_name, &BASE64_STANDARD.encode(bytes)),
        }
    }

    /// The members that another writer collected outside of any bracket.
    pub(crate) fn members(&mut self, members: &Writer) {
        self.item_raw(&members.buffer);
    }

    /// `key` or `key_base64`.
    pub(crate) fn key(&mut self, key: &[u8]) {
        self.bytes("key", "key_base64", key);
    }
}

/// Decimal digits, last one first.
fn itoa(mut value: u64) -> Digits {
    let mut digits = Digits::default();
    loop {
        digits.push(b"0123456789"[usize::try_from(value % 10).unwrap_or(0)]);
        value /= 10;
        if value == 0 {
            return digits;
        }
    }
}

/// Room for the 20 digits of `u64::MAX` and a sign, without an allocation.
#[derive(Default)]
struct Digits {
    bytes: [u8; 21],
    len: usize,
}

impl Digits {
    fn push(&mut self, byte: u8) {
        self.bytes[self.len] = byte;
        self.len += 1;
    }

    fn reverse(&mut self) {
        self.bytes[..self.len].reverse();
    }
}

impl std::ops::Deref for Digits {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

fn push_string(buffer: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    buffer.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|&byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
        buffer.extend_from_slice(&rest[..at]);
        match rest[at] {
            b'"' => buffer.extend_from_slice(b"\\\""),
            b'\\' => buffer.extend_from_slice(b"\\\\"),
            b'\n' => buffer.extend_from_slice(b"\\n"),
            b'\r' => buffer.extend_from_slice(b"\\r"),
            b'\t' => buffer.extend_from_slice(b"\\t"),
            control => {
                buffer.extend_from_slice(b"\\u00");
                buffer.extend([HEX[usize::from(control >> 4)], HEX[usize::from(control & 15)]]);
            }
        }
        rest = &rest[at + 1..];
    }
    buffer.extend_from_slice(rest);
    buffer.push(b'"');
}

/// Indents compact JSON by two spaces, keeping order and numbers as they are.
pub(crate) fn pretty(compact: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(compact.len() * 2);
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    let line = |out: &mut Vec<u8>, depth: usize| {
        out.push(b'\n');
        out.resize(out.len() + depth * 2, b' ');
    };
    let mut bytes = compact.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        if in_string {
            out.push(byte);
            in_string = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
            continue;
        }
        match byte {
            b'{' | b'[' => {
                out.push(byte);
                if bytes.peek().is_some_and(|&next| next == byte + 2) {
                    continue;
                }
                depth += 1;
                line(&mut out, depth);
            }
            b'}' | b']' => {
                if out.last() != Some(&(byte - 2)) {
                    depth = depth.saturating_sub(1);
                    line(&mut out, depth);
                }
                out.push(byte);
            }
            b',' => {
                out.push(byte);
                line(&mut out, depth);
            }
            b':' => out.extend_from_slice(b": "),
            other => {
                in_string = other == b'"';
                out.push(other);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn members_items_and_lines_get_their_commas() {
        let mut json = Writer::default();
        json.open();
        json.int("a", i64::MIN);
        json.count("b", u64::MAX);
        json.name("c");
        json.open_list();
        json.item_text("x\"\u{1}");
        json.open();
        json.close();
        json.close_list();
        json.bytes("value", "value_base64", b"\xff\x00");
        json.close();
        json.newline();
        json.open();
        json.close();
        let expected = concat!(
            r#"{"a":-9223372036854775808,"b":18446744073709551615,"c":["x\"\u0001",{}],"value_base64":"/wA="}"#,
            "\n{}"
        );
        assert_eq!(String::from_utf8(json.into_bytes()).unwrap(), expected);
    }

    #[test]
    fn pretty_indents_and_keeps_empty_brackets_together() {
        let text = pretty(br#"{"a":[],"b":{"c":[1,"x,{\"}"]},"d":{}}"#);
        let expected =
            "{\n  \"a\": [],\n  \"b\": {\n    \"c\": [\n      1,\n      \"x,{\\\"}\"\n    ]\n  },\n  \"d\": {}\n}";
        assert_eq!(String::from_utf8(text).unwrap(), expected);
    }

    proptest! {
        #[test]
        fn any_text_comes_back(text: String) {
            let mut json = Writer::default();
            json.item_text(&text);
            let bytes = json.into_bytes();
            prop_assert_eq!(serde_json::from_slice::<String>(&bytes).unwrap(), text.clone());
            prop_assert_eq!(serde_json::from_slice::<String>(&pretty(&bytes)).unwrap(), text);
        }
    }
}
