//! A strict JSON reader (RFC 8259). Numbers are kept as text: nothing is rounded before it is known
//! what the number is for.

use crate::model::limits::JSON_DEPTH_MAX;
use std::borrow::Cow;
use std::collections::BTreeSet;
use thiserror::Error;

/// A value and the bytes it was written as.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Node<'a> {
    pub(crate) raw: &'a [u8],
    pub(crate) value: Value<'a>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value<'a> {
    Null,
    Bool(bool),
    Number(&'a str),
    String(Cow<'a, str>),
    Array(Vec<Node<'a>>),
    /// In the order written; names are unique.
    Object(Vec<(Cow<'a, str>, Node<'a>)>),
}

impl Value<'_> {
    /// For messages: what it is, with its article.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::String(_) => "a string",
            Self::Array(_) => "an array",
            Self::Object(_) => "an object",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what} at byte {at}")]
pub(crate) struct JsonError {
    pub(crate) what: Cow<'static, str>,
    pub(crate) at: usize,
}

/// Parses exactly one JSON text.
pub(crate) fn parse(text: &[u8]) -> Result<Node<'_>, JsonError> {
    let text =
        std::str::from_utf8(text).map_err(|error| JsonError { what: "not UTF-8".into(), at: error.valid_up_to() })?;
    let mut reader = Reader { text, at: 0, depth: 0 };
    reader.skip_space();
    let node = reader.node()?;
    reader.skip_space();
    if reader.at == text.len() { Ok(node) } else { Err(reader.error("unexpected bytes after the JSON value")) }
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn error(&self, what: impl Into<Cow<'static, str>>) -> JsonError {
        JsonError { what: what.into(), at: self.at }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn node(&mut self) -> Result<Node<'a>, JsonError> {
        let start = self.at;
        let value = match self.peek() {
            Some(b'{') => self.nested(Self::object)?,
            Some(b'[') => self.nested(Self::array)?,
            Some(b'"') => Value::String(self.string()?),
            Some(b'-' | b'0'..=b'9') => Value::Number(self.number()?),
            Some(b't') => self.word("true", Value::Bool(true))?,
            Some(b'f') => self.word("false", Value::Bool(false))?,
            Some(b'n') => self.word("null", Value::Null)?,
            Some(_) => return Err(self.error("expected a JSON value")),
            None => return Err(self.error("unexpected end of JSON")),
        };
        Ok(Node { raw: &self.text.as_bytes()[start..self.at], value })
    }

    fn nested(&mut self, read: fn(&mut Self) -> Result<Value<'a>, JsonError>) -> Result<Value<'a>, JsonError> {
        if self.depth == JSON_DEPTH_MAX {
            return Err(self.error(format!("nested deeper than {JSON_DEPTH_MAX} levels")));
        }
        self.depth += 1;
        self.at += 1;
        let value = read(self)?;
        self.depth -= 1;
        Ok(value)
    }

    fn word(&mut self, word: &str, value: Value<'a>) -> Result<Value<'a>, JsonError> {
        if self.text[self.at..].starts_with(word) {
            self.at += word.len();
            Ok(value)
        } else {
            Err(self.error("expected a JSON value"))
        }
    }

    fn array(&mut self) -> Result<Value<'a>, JsonError> {
        let mut items = Vec::new();
        self.skip_space();
        if self.eat(b']') {
            return Ok(Value::Array(items));
        }
        loop {
            self.skip_space();
            items.push(self.node()?);
            self.skip_space();
            if self.eat(b']') {
                return Ok(Value::Array(items));
            }
            if !self.eat(b',') {
                return Err(self.error("expected `,` or `]`"));
            }
        }
    }

    fn object(&mut self) -> Result<Value<'a>, JsonError> {
        let mut members = Vec::new();
        let mut names = BTreeSet::new();
        self.skip_space();
        if self.eat(b'}') {
            return Ok(Value::Object(members));
        }
        loop {
            self.skip_space();
            if self.peek() != Some(b'"') {
                return Err(self.error("expected a member name in quotes"));
            }
            let name = self.string()?;
            if !names.insert(name.clone()) {
                return Err(self.error(format!("member `{name}` is given twice")));
            }
            self.skip_space();
            if !self.eat(b':') {
                return Err(self.error("expected `:`"));
            }
            self.skip_space();
            members.push((name, self.node()?));
            self.skip_space();
            if self.eat(b'}') {
                return Ok(Value::Object(members));
            }
            if !self.eat(b',') {
                return Err(self.error("expected `,` or `}`"));
            }
        }
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        if !matches!(self.peek(), Some(b'0'..=b'9')) {
            return Err(self.error("expected a digit"));
        }
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        Ok(())
    }

    fn number(&mut self) -> Result<&'a str, JsonError> {
        let start = self.at;
        self.eat(b'-');
        if !self.eat(b'0') {
            self.digits()?;
        }
        if self.eat(b'.') {
            self.digits()?;
        }
        if self.eat(b'e') || self.eat(b'E') {
            if !self.eat(b'+') {
                self.eat(b'-');
            }
            self.digits()?;
        }
        Ok(&self.text[start..self.at])
    }

    fn string(&mut self) -> Result<Cow<'a, str>, JsonError> {
        self.at += 1;
        let start = self.at;
        let mut owned: Option<String> = None;
        let mut plain_from = start;
        loop {
            match self.peek() {
                Some(b'"') => {
                    let plain = &self.text[plain_from..self.at];
                    self.at += 1;
                    return Ok(match owned {
                        None => Cow::Borrowed(plain),
                        Some(mut text) => {
                            text.push_str(plain);
                            Cow::Owned(text)
                        }
                    });
                }
                Some(b'\\') => {
                    let text = owned.get_or_insert_with(String::new);
                    text.push_str(&self.text[plain_from..self.at]);
                    self.at += 1;
                    let unescaped = self.escape()?;
                    text.push(unescaped);
                    plain_from = self.at;
                }
                Some(0..=0x1f) => return Err(self.error("a control character in a string must be escaped")),
                Some(_) => self.at += 1,
                None => return Err(self.error("the string does not end")),
            }
        }
    }

    fn escape(&mut self) -> Result<char, JsonError> {
        let Some(byte) = self.peek() else { return Err(self.error("the string does not end")) };
        self.at += 1;
        Ok(match byte {
            b'"' => '"',
            b'\\' => '\\',
            b'/' => '/',
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.unicode(),
            _ => return Err(self.error("unknown escape")),
        })
    }

    fn unicode(&mut self) -> Result<char, JsonError> {
        let first = self.hex4()?;
        let code = match first {
            0xd800..=0xdbff => {
                if !(self.eat(b'\\') && self.eat(b'u')) {
                    return Err(self.error("a lone surrogate is not text"));
                }
                let second = self.hex4()?;
                if !(0xdc00..=0xdfff).contains(&second) {
                    return Err(self.error("a lone surrogate is not text"));
                }
                0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00)
            }
            other => other,
        };
        char::from_u32(code).ok_or_else(|| self.error("a lone surrogate is not text"))
    }

    fn hex4(&mut self) -> Result<u32, JsonError> {
        let digits = self.text.as_bytes().get(self.at..self.at + 4);
        let digits = digits.filter(|digits| digits.iter().all(u8::is_ascii_hexdigit));
        let code = digits.and_then(|_| u32::from_str_radix(&self.text[self.at..self.at + 4], 16).ok());
        let code = code.ok_or_else(|| self.error("expected four hexadecimal digits"))?;
        self.at += 4;
        Ok(code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn refusal(text: &str) -> String {
        parse(text.as_bytes()).unwrap_err().what.into_owned()
    }

    #[test]
    fn a_value_keeps_the_bytes_it_was_written_as() {
        let text = br#" {"a" : [1.50, 12345678901234567890123, {"z":1,"b":2}] } "#;
        let Value::Object(members) = parse(text).unwrap().value else { panic!("an object") };
        assert_eq!(members[0].1.raw, br#"[1.50, 12345678901234567890123, {"z":1,"b":2}]"#);
    }

    #[test]
    fn duplicates_depth_and_trailing_bytes_are_refused() {
        assert_eq!(refusal(r#"{"a":1,"\u0061":2}"#), "member `a` is given twice");
        assert_eq!(refusal("{} {}"), "unexpected bytes after the JSON value");
        assert_eq!(refusal(""), "unexpected end of JSON");
        let deep = |levels: usize| "[".repeat(levels) + &"]".repeat(levels);
        assert!(parse(deep(JSON_DEPTH_MAX).as_bytes()).is_ok());
        assert_eq!(refusal(&deep(JSON_DEPTH_MAX + 1)), "nested deeper than 128 levels");
        assert!(parse(&vec![b'['; 1 << 20]).is_err(), "depth is bounded before the stack is");
    }

    #[test]
    fn strings_are_unescaped_and_lone_surrogates_refused() {
        let node = parse(br#""a\n\u00e4\ud83d\ude00\/""#).unwrap();
        assert_eq!(node.value, Value::String("a\nä😀/".into()));
        for text in [
            r#""\ud83d""#,
            r#""\ud83dx""#,
            r#""\ude00""#,
            r#""\ud83d\u0041""#,
            "\"\n\"",
            r#""\x""#,
            r#""\u00g0""#,
            "\"\\u12\u{e4}",
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
    }

    /// Texts near JSON, so that both verdicts occur often.
    fn json_like() -> impl Strategy<Value = String> {
        let leaf = prop_oneof![
            Just("null".to_owned()),
            Just("true".to_owned()),
            "-?(0|[1-9][0-9]{0,18})(\\.[0-9]{1,3})?([eE][+-]?[0-9]{1,2})?",
            "\"([ -~äß😀]{0,6})\"",
            "\"\\\\[\"\\\\/bfnrtu0-9]{1,6}\"",
        ];
        let tree = leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(|items| format!("[{}]", items.join(", "))),
                prop::collection::vec(inner, 0..4).prop_map(|items| {
                    let members: Vec<_> =
                        items.iter().enumerate().map(|(i, item)| format!("\"k{i}\":{item}")).collect();
                    format!("{{{}}}", members.join(","))
                }),
            ]
        });
        (tree, any::<prop::sample::Index>(), prop::option::of("[\\[\\]{}:,\"\\\\ 0-9a-z.+-]")).prop_map(
            |(text, at, damage)| match damage {
                None => text,
                Some(damage) => {
                    let mut chars: Vec<char> = text.chars().collect();
                    let at = at.index(chars.len());
                    chars[at] = damage.chars().next().unwrap();
                    chars.into_iter().collect()
                }
            },
        )
    }

    fn same(ours: &Value<'_>, theirs: &serde_json::Value) -> bool {
        match (ours, theirs) {
            (Value::Null, serde_json::Value::Null) => true,
            (Value::Bool(ours), serde_json::Value::Bool(theirs)) => ours == theirs,
            (Value::Number(ours), serde_json::Value::Number(theirs)) => {
                serde_json::from_str::<serde_json::Number>(ours).is_ok_and(|ours| ours == *theirs)
            }
            (Value::String(ours), serde_json::Value::String(theirs)) => ours == theirs,
            (Value::Array(ours), serde_json::Value::Array(theirs)) => {
                ours.len() == theirs.len() && ours.iter().zip(theirs).all(|(o, t)| same(&o.value, t))
            }
            (Value::Object(ours), serde_json::Value::Object(theirs)) => {
                ours.len() == theirs.len()
                    && ours.iter().all(|(name, node)| theirs.get(&**name).is_some_and(|t| same(&node.value, t)))
            }
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn agrees_with_serde_json(text in json_like()) {
            match (parse(text.as_bytes()), serde_json::from_str::<serde_json::Value>(&text)) {
                (Ok(ours), Ok(theirs)) => prop_assert!(same(&ours.value, &theirs), "{text}"),
                (Err(_), Err(_)) => {}
                // serde_json refuses numbers beyond f64, and keeps the last of two equal names.
                (Ok(_), Err(error)) => prop_assert!(error.to_string().contains("number out of range"), "{text}: {error}"),
                (Err(error), Ok(_)) => prop_assert!(error.what.contains("twice"), "{text}: {error}"),
            }
        }

        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _verdict = parse(&bytes);
        }
    }
}
