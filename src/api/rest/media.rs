//! What may be declared as a value's type: RFC 9110's `type/subtype`, with parameters. It is served
//! again as the header it came from, so that anything else would break whoever reads it.

use crate::model::limits::CONTENT_TYPE_BYTES_MAX;

/// For messages: what is accepted.
pub(super) const EXPECTED: &str = "a media type such as `text/plain; charset=utf-8`, at most 256 bytes";

pub(super) fn is_media_type(text: &str) -> bool {
    text.len() <= CONTENT_TYPE_BYTES_MAX && media_type(text.as_bytes()).is_some()
}

fn media_type(text: &[u8]) -> Option<()> {
    let rest = token(text)?.strip_prefix(b"/")?;
    let mut rest = token(rest)?;
    while !rest.is_empty() {
        rest = parameter(blanks(blanks(rest).strip_prefix(b";")?))?;
    }
    Some(())
}

/// `name=value` or nothing at all, as between two semicolons.
fn parameter(text: &[u8]) -> Option<&[u8]> {
    let Some(rest) = token(text) else { return Some(text).filter(|text| text.is_empty() || text[0] == b';') };
    let rest = rest.strip_prefix(b"=")?;
    match rest.strip_prefix(b"\"") {
        Some(quoted) => end_of_quoted(quoted),
        None => token(rest),
    }
}

fn end_of_quoted(mut text: &[u8]) -> Option<&[u8]> {
    loop {
        text = match text {
            [b'"', rest @ ..] => return Some(rest),
            [b'\\', b'\t' | b' '..=b'~', rest @ ..] => rest,
            [b'\\', ..] => return None,
            [b'\t' | b' '..=b'~', rest @ ..] => rest,
            _ => return None,
        };
    }
}

fn blanks(text: &[u8]) -> &[u8] {
    let end = text.iter().position(|byte| !matches!(byte, b' ' | b'\t')).unwrap_or(text.len());
    &text[end..]
}

/// What follows a token of at least one character.
fn token(text: &[u8]) -> Option<&[u8]> {
    let in_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    let end = text.iter().position(|byte| !in_token(byte)).unwrap_or(text.len());
    (end > 0).then(|| &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_are_told_from_other_text() {
        for fine in [
            "text/plain",
            "application/vnd.api+json",
            "text/plain; charset=utf-8",
            "text/plain;charset=utf-8 ; q=1",
            "multipart/form-data; boundary=\"a b; \\\" c\"",
            "a/b;",
            "a/b; ;c=d",
            "*/*",
        ] {
            assert!(is_media_type(fine), "{fine}");
        }
        for wrong in [
            "",
            "json",
            "text/",
            "/plain",
            "text/plain/more",
            "text plain",
            "text/plain charset=utf-8",
            "text/plain; charset",
            "text/plain; charset=",
            "text/plain; =utf-8",
            "text/plain; a=\"b",
            "text/plain; a=\"b\\",
            "text/plain; a=\"b\"c",
            "text/plain ",
            " text/plain",
            "text/pl\u{e4}in",
            "text/plain; a=b\nc",
        ] {
            assert!(!is_media_type(wrong), "{wrong}");
        }
        assert!(!is_media_type(&format!("text/{}", "x".repeat(CONTENT_TYPE_BYTES_MAX))));
    }
}
