//! The requests of a load, in the words of REST or of etcd's JSON gateway, so that one loop measures both.
//!
//! Keys are plain text (`keys` sees to that), so nothing is escaped.

use super::door::Ask;
use super::keys::Keyspace;
use crate::client::etcd::range_end;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use std::io::Write as _;
use std::sync::Arc;

/// Writes requests into buffers that are used again and again.
#[derive(Debug)]
pub(super) struct Requests {
    etcd: bool,
    keys: Arc<Keyspace>,
    /// As it stands in a body: the gateway's is base64.
    value: Arc<str>,
    /// Of every request's head: the host, and who asks.
    lines: String,
    body: Vec<u8>,
    plain: Vec<u8>,
    encoded: String,
}

/// The value as `Requests` wants it.
pub(super) fn value(etcd: bool, plain: String) -> Arc<str> {
    if etcd { BASE64_STANDARD.encode(plain).into() } else { plain.into() }
}

// Writing to a Vec cannot fail.
impl Requests {
    pub(super) fn new(etcd: bool, keys: Arc<Keyspace>, value: Arc<str>, lines: String) -> Self {
        let body = Vec::with_capacity(64 << 10);
        Self { etcd, keys, value, lines, body, plain: Vec::new(), encoded: String::new() }
    }

    pub(super) fn write(&mut self, request: &mut Vec<u8>, ask: Ask<'_>) {
        match ask {
            Ask::Get { key, stale } => self.get(request, key, stale),
            Ask::Put { key } => self.put(request, key),
            Ask::Txn { keys } => self.txn(request, keys),
            Ask::Range { from, limit, stale } => self.range(request, from, limit, stale),
            Ask::Count { stale } => self.count(request, stale),
        }
    }

    fn get(&mut self, request: &mut Vec<u8>, key: u64, stale: bool) {
        request.clear();
        if self.etcd {
            self.encode(key);
            let serializable = if stale { ",\"serializable\":true" } else { "" };
            write!(self.body, "{{\"key\":\"{}\"{serializable}}}", self.encoded).ok();
            return self.post(request, "/v3/kv/range");
        }
        request.extend_from_slice(b"GET /v1/kv/");
        self.keys.write(key, request);
        request.extend_from_slice(if stale { &b"?consistency=stale"[..] } else { b"" });
        write!(request, " HTTP/1.1\r\n{}\r\n", self.lines).ok();
    }

    fn put(&mut self, request: &mut Vec<u8>, key: u64) {
        request.clear();
        if self.etcd {
            self.encode(key);
            write!(self.body, "{{\"key\":\"{}\",\"value\":\"{}\"}}", self.encoded, self.value).ok();
            return self.post(request, "/v3/kv/put");
        }
        request.extend_from_slice(b"PUT /v1/kv/");
        self.keys.write(key, request);
        write!(request, " HTTP/1.1\r\n{}content-length: {}\r\n\r\n", self.lines, self.value.len()).ok();
        request.extend_from_slice(self.value.as_bytes());
    }

    /// One transaction that puts all of these.
    fn txn(&mut self, request: &mut Vec<u8>, keys: &[u64]) {
        request.clear();
        self.body.clear();
        self.body.extend_from_slice(if self.etcd { b"{\"success\":[" } else { b"{\"then\":[" });
        for (position, &key) in keys.iter().enumerate() {
            if position > 0 {
                self.body.push(b',');
            }
            let name = if self.etcd { "requestPut" } else { "put" };
            write!(self.body, "{{\"{name}\":{{\"key\":\"").ok();
            if self.etcd {
                self.encode_only(key);
                self.body.extend_from_slice(self.encoded.as_bytes());
            } else {
                self.keys.write(key, &mut self.body);
            }
            write!(self.body, "\",\"value\":\"{}\"}}}}", self.value).ok();
        }
        self.body.extend_from_slice(b"]}");
        self.post(request, if self.etcd { "/v3/kv/txn" } else { "/v1/txn" });
    }

    /// So many keys from this one on.
    fn range(&mut self, request: &mut Vec<u8>, from: u64, limit: u64, stale: bool) {
        request.clear();
        if self.etcd {
            self.encode(from);
            write!(self.body, "{{\"key\":\"{}\",\"rangeEnd\":\"", self.encoded).ok();
            self.encode_only(from + limit);
            let serializable = if stale { ",\"serializable\":true" } else { "" };
            write!(self.body, "{}\"{serializable}}}", self.encoded).ok();
            return self.post(request, "/v3/kv/range");
        }
        request.extend_from_slice(b"GET /v1/kv?start=");
        self.keys.write(from, request);
        request.extend_from_slice(b"&end=");
        self.keys.write(from + limit, request);
        write!(request, "&limit={limit}{}", if stale { "&consistency=stale" } else { "" }).ok();
        write!(request, " HTTP/1.1\r\n{}\r\n", self.lines).ok();
    }

    /// How many keys there are.
    fn count(&mut self, request: &mut Vec<u8>, stale: bool) {
        request.clear();
        if self.etcd {
            self.body.clear();
            let range = self.keys.range();
            let key = BASE64_STANDARD.encode(&range.start);
            let end = BASE64_STANDARD.encode(range_end(range.end));
            let serializable = if stale { ",\"serializable\":true" } else { "" };
            write!(self.body, "{{\"key\":\"{key}\",\"rangeEnd\":\"{end}\",\"countOnly\":true{serializable}}}").ok();
            return self.post(request, "/v3/kv/range");
        }
        let consistency = if stale { "&consistency=stale" } else { "" };
        let prefix = self.keys.prefix();
        write!(request, "GET /v1/kv?prefix={prefix}&count_only{consistency} HTTP/1.1\r\n").ok();
        write!(request, "{}\r\n", self.lines).ok();
    }

    /// The key in base64, for a new body.
    fn encode(&mut self, key: u64) {
        self.body.clear();
        self.encode_only(key);
    }

    fn encode_only(&mut self, key: u64) {
        self.plain.clear();
        self.keys.write(key, &mut self.plain);
        self.encoded.clear();
        BASE64_STANDARD.encode_string(&self.plain, &mut self.encoded);
    }

    fn post(&self, request: &mut Vec<u8>, path: &str) {
        let (lines, length) = (&self.lines, self.body.len());
        write!(request, "POST {path} HTTP/1.1\r\n{lines}content-type: application/json\r\n").ok();
        write!(request, "content-length: {length}\r\n\r\n").ok();
        request.extend_from_slice(&self.body);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requests(etcd: bool) -> Requests {
        let keys = Arc::new(Keyspace::new("b/", 8, 100).unwrap());
        Requests::new(etcd, keys, value(etcd, "abc".to_owned()), "host: h:1\r\n".to_owned())
    }

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut request = b"what was there before".to_vec();
        write(&mut request);
        String::from_utf8(request).unwrap()
    }

    #[test]
    fn rest() {
        let mut requests = requests(false);
        assert_eq!(text(|out| requests.get(out, 7, false)), "GET /v1/kv/b/000007 HTTP/1.1\r\nhost: h:1\r\n\r\n");
        assert!(text(|out| requests.get(out, 7, true)).starts_with("GET /v1/kv/b/000007?consistency=stale "));
        let put = text(|out| requests.put(out, 7));
        assert_eq!(put, "PUT /v1/kv/b/000007 HTTP/1.1\r\nhost: h:1\r\ncontent-length: 3\r\n\r\nabc");
        let txn = text(|out| requests.txn(out, &[1, 2]));
        let body = txn.split("\r\n\r\n").nth(1).unwrap();
        let put = |key: &str| format!(r#"{{"put":{{"key":"{key}","value":"abc"}}}}"#);
        assert_eq!(body, format!(r#"{{"then":[{},{}]}}"#, put("b/000001"), put("b/000002")));
        assert!(txn.contains(&format!("content-length: {}\r\n", body.len())), "{txn}");
        let range = text(|out| requests.range(out, 7, 5, true));
        assert!(range.starts_with("GET /v1/kv?start=b/000007&end=b/000012&limit=5&consistency=stale HTTP/1.1\r\n"));
        assert!(text(|out| requests.count(out, false)).starts_with("GET /v1/kv?prefix=b/&count_only HTTP/1.1\r\n"));
    }

    #[test]
    fn etcds_gateway() {
        let mut requests = requests(true);
        let body = |request: String, path: &str| {
            assert!(request.starts_with(&format!("POST {path} HTTP/1.1\r\n")), "{request}");
            let (head, body) = request.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("content-length: {}", body.len())), "{request}");
            serde_json::from_str::<serde_json::Value>(body).unwrap()
        };
        let (key, value) = (BASE64_STANDARD.encode("b/000007"), BASE64_STANDARD.encode("abc"));
        let json = serde_json::json!({"key": key});
        assert_eq!(body(text(|out| requests.get(out, 7, false)), "/v3/kv/range"), json);
        let json = serde_json::json!({"key": key, "serializable": true});
        assert_eq!(body(text(|out| requests.get(out, 7, true)), "/v3/kv/range"), json);
        let json = serde_json::json!({"key": key, "value": value});
        assert_eq!(body(text(|out| requests.put(out, 7)), "/v3/kv/put"), json);
        let json = serde_json::json!({"success": [{"requestPut": json}, {"requestPut": json}]});
        assert_eq!(body(text(|out| requests.txn(out, &[7, 7])), "/v3/kv/txn"), json);
        let json = serde_json::json!({"key": key, "rangeEnd": BASE64_STANDARD.encode("b/000012")});
        assert_eq!(body(text(|out| requests.range(out, 7, 5, false)), "/v3/kv/range"), json);
        let (key, end) = (BASE64_STANDARD.encode("b/"), BASE64_STANDARD.encode("b0"));
        let json = serde_json::json!({"key": key, "rangeEnd": end, "countOnly": true, "serializable": true});
        assert_eq!(body(text(|out| requests.count(out, true)), "/v3/kv/range"), json);
    }
}
