//! A request as the `curl` line that does the same, quoted for a POSIX shell.

use super::{Body, Credentials, Method, Request};
use std::fmt::Write as _;

/// The line that sends `request` to `base` (`http://HOST:PORT`); secrets are not in it.
#[must_use]
pub fn curl_line(base: &str, request: &Request, credentials: &Credentials) -> String {
    let mut line = String::new();
    // A value that no shell word can hold is piped in.
    let piped = match &request.body {
        Body::Inline(bytes) if !fits_a_word(bytes) => {
            write_words(&mut line, &["printf", &quote(printf_escaped(bytes).as_bytes()), "|", ""]);
            true
        }
        _ => false,
    };
    line.push_str("curl");
    let uploads = matches!(request.body, Body::Inline(_) | Body::File(_) | Body::Stdin);
    match request.method {
        Method::Get => {}
        Method::Post if uploads => {}
        method => write_words(&mut line, &["", "-X", method.as_str()]),
    }
    line.push_str(&credentials.curl_words());
    for (name, value) in &request.headers {
        write_words(&mut line, &["", "-H", &quote(format!("{name}: {value}").as_bytes())]);
    }
    match &request.body {
        Body::None => {}
        Body::Inline(_) if piped => line.push_str(" --data-binary @-"),
        Body::Inline(bytes) => write_words(&mut line, &["", "--data-raw", &quote(bytes)]),
        Body::File(path) => {
            let source = [b"@", path.as_os_str().as_encoded_bytes()].concat();
            write_words(&mut line, &["", "--data-binary", &quote(&source)]);
        }
        Body::Stdin => line.push_str(" --data-binary @-"),
    }
    if let Some(path) = &request.save_as {
        write_words(&mut line, &["", "-o", &quote(path.as_os_str().as_encoded_bytes())]);
    }
    line.push(' ');
    line.push_str(&quote(format!("{base}{}", request.target()).as_bytes()));
    line
}

fn write_words(line: &mut String, words: &[&str]) {
    line.push_str(&words.join(" "));
}

/// One shell word: as it is if that is safe, else in single quotes.
#[must_use]
pub fn quote(word: &[u8]) -> String {
    let text = String::from_utf8_lossy(word);
    let safe = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    if !text.is_empty() && text.chars().all(safe) {
        return text.into_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A shell word holds any UTF-8 but NUL; other control characters would wreck the terminal it is shown on.
fn fits_a_word(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| !text.chars().any(|c| c.is_control() && c != '\n' && c != '\t'))
}

fn printf_escaped(bytes: &[u8]) -> String {
    let mut format = String::new();
    for byte in bytes {
        match byte {
            b'%' => format.push_str("%%"),
            b'\\' => format.push_str(r"\\"),
            0x20..=0x7e => format.push(char::from(*byte)),
            _ => {
                // Octal with three digits is the only escape that every printf knows. Writing to a String cannot fail.
                write!(format, "\\{byte:03o}").ok();
            }
        }
    }
    format
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::process::Command;

    const BASE: &str = "http://127.0.0.1:2379";

    fn curl_line(base: &str, request: &Request) -> String {
        super::curl_line(base, request, &Credentials::default())
    }

    fn put(body: &'static [u8]) -> Request {
        Request::on_key(Method::Put, "/v1/kv/", b"a b").body(Body::Inline(Bytes::from_static(body)))
    }

    #[test]
    fn lines_as_a_person_would_write_them() {
        let get = Request::on_key(Method::Get, "/v1/kv/", b"app/db");
        assert_eq!(curl_line(BASE, &get), "curl http://127.0.0.1:2379/v1/kv/app/db");
        let list = Request::new(Method::Get, "/v1/kv").with("prefix", "app/").flag("keys_only", true);
        assert_eq!(curl_line(BASE, &list), "curl 'http://127.0.0.1:2379/v1/kv?prefix=app/&keys_only'");
        let cas = put(b"it's").header("If-Match", "\"12\"");
        let wanted = r#"curl -X PUT -H 'If-Match: "12"' --data-raw 'it'\''s' http://127.0.0.1:2379/v1/kv/a%20b"#;
        assert_eq!(curl_line(BASE, &cas), wanted);
        let delete = Request::on_key(Method::Delete, "/v1/kv/", b"k");
        assert_eq!(curl_line(BASE, &delete), "curl -X DELETE http://127.0.0.1:2379/v1/kv/k");
        let incr = Request::on_key(Method::Post, "/v1/counters/", b"hits").with("add", "2");
        assert_eq!(curl_line(BASE, &incr), "curl -X POST 'http://127.0.0.1:2379/v1/counters/hits?add=2'");
        let ann = Credentials::password("ann", "secret").unwrap();
        assert_eq!(super::curl_line(BASE, &get, &ann), "curl -u ann http://127.0.0.1:2379/v1/kv/app/db");
        let mut snapshot = Request::new(Method::Get, "/v1/snapshot");
        snapshot.save_as = Some("my backup".into());
        assert_eq!(curl_line(BASE, &snapshot), "curl -o 'my backup' http://127.0.0.1:2379/v1/snapshot");
    }

    #[test]
    fn bodies_from_elsewhere_are_named_not_copied() {
        let file = Request::on_key(Method::Put, "/v1/kv/", b"k").body(Body::File("logo.png".into()));
        assert_eq!(curl_line(BASE, &file), "curl -X PUT --data-binary @logo.png http://127.0.0.1:2379/v1/kv/k");
        let stdin = Request::new(Method::Post, "/v1/txn").body(Body::Stdin);
        assert_eq!(curl_line(BASE, &stdin), "curl --data-binary @- http://127.0.0.1:2379/v1/txn");
    }

    /// Lets a real shell split the line and compares what each program would see.
    #[test]
    fn a_shell_reads_back_what_was_meant() {
        for body in [&b"plain"[..], b"", b"it's $HOME `x` \"q\" \\ !", b"two\nlines\n", b"@file", "grüße".as_bytes()]
        {
            let line = curl_line(BASE, &put(b"").body(Body::Inline(Bytes::copy_from_slice(body))));
            let script = format!("curl() {{ printf '%s\\0' \"$@\"; }}; {line}");
            let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
            let args: Vec<&[u8]> = output.stdout.split(|byte| *byte == 0).collect();
            assert_eq!(args[..2], [&b"-X"[..], b"PUT"]);
            assert_eq!(args[2..4], [&b"--data-raw"[..], body], "{line}");
            assert_eq!(args[4], b"http://127.0.0.1:2379/v1/kv/a%20b");
        }
    }

    #[test]
    fn binary_bodies_are_piped_exactly() {
        let body: Vec<u8> = (0..=255).chain(*b"100% \\n").collect();
        let line = curl_line(BASE, &put(b"").body(Body::Inline(body.clone().into())));
        assert!(line.contains("| curl -X PUT --data-binary @- "), "{line}");
        let script = format!("curl() {{ cat; }}; {line}");
        let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
        assert_eq!(output.stdout, body);
    }
}
