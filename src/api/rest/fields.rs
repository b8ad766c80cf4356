//! Members of JSON bodies, strictly typed, with messages that say where; and scalars of POST actions,
//! which may come by query or by body.

use super::keys::{checked, from_base64};
use super::query::{Query, choose, not_a_duration, parse_duration, unknown};
use crate::api::json::{Node, Value, parse};
use crate::api::problem::Problem;
use bytes::Bytes;
use std::borrow::Cow;
use std::time::Duration;

pub(crate) fn parse_body(body: &[u8]) -> Result<Node<'_>, Problem> {
    parse(body).map_err(|error| Problem::body(format!("the body is not acceptable JSON: {error}")))
}

/// An object's members, taken one by one; what is left over at the end is unknown.
#[derive(Debug)]
pub(crate) struct Fields<'a> {
    /// Where this object is, for messages: `then[0].put`, empty for the body itself.
    place: String,
    members: Vec<(Cow<'a, str>, Node<'a>)>,
    taken: Vec<&'static str>,
}

impl<'a> Fields<'a> {
    pub(crate) fn of(node: Node<'a>, place: impl Into<String>) -> Result<Self, Problem> {
        let place = place.into();
        match node.value {
            Value::Object(members) => Ok(Self { place, members, taken: Vec::new() }),
            other => {
                let what = if place.is_empty() { "the body" } else { &place };
                Err(Problem::body(format!("{what} is {}, not an object", other.kind())))
            }
        }
    }

    pub(crate) fn none() -> Self {
        Self { place: String::new(), members: Vec::new(), taken: Vec::new() }
    }

    /// The path of a member, for messages.
    pub(crate) fn path(&self, name: &str) -> String {
        if self.place.is_empty() { name.to_owned() } else { format!("{}.{name}", self.place) }
    }

    pub(crate) fn wrong(&self, name: &str, expected: &str) -> Problem {
        let path = self.path(name);
        Problem::body(format!("`{path}` is not {expected}")).text("parameter", &path)
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.members.iter().map(|(name, _)| &**name)
    }

    pub(crate) fn take(&mut self, name: &'static str) -> Option<Node<'a>> {
        self.taken.push(name);
        let at = self.members.iter().position(|(known, _)| known == name)?;
        Some(self.members.swap_remove(at).1)
    }

    /// Everything has been taken.
    pub(crate) fn finish(self) -> Result<(), Problem> {
        match self.members.first() {
            None => Ok(()),
            Some((name, _)) => {
                let problem = unknown(name, self.taken.iter().copied());
                Err(if self.place.is_empty() { problem } else { problem.text("place", &self.place) })
            }
        }
    }

    pub(crate) fn bool(&mut self, name: &'static str) -> Result<Option<bool>, Problem> {
        match self.take(name).map(|node| node.value) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(_) => Err(self.wrong(name, "a boolean")),
        }
    }

    pub(crate) fn int(&mut self, name: &'static str) -> Result<Option<i64>, Problem> {
        match self.take(name).map(|node| node.value) {
            None => Ok(None),
            Some(Value::Number(text)) => text.parse().map(Some).map_err(|_| self.wrong(name, "a 64-bit integer")),
            Some(_) => Err(self.wrong(name, "a 64-bit integer")),
        }
    }

    pub(crate) fn text(&mut self, name: &'static str) -> Result<Option<Cow<'a, str>>, Problem> {
        match self.take(name).map(|node| node.value) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => Err(self.wrong(name, "a string")),
        }
    }

    pub(crate) fn list(&mut self, name: &'static str) -> Result<Vec<Node<'a>>, Problem> {
        match self.take(name).map(|node| node.value) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => Ok(items),
            Some(_) => Err(self.wrong(name, "an array")),
        }
    }

    pub(crate) fn duration(&mut self, name: &'static str) -> Result<Option<Duration>, Problem> {
        let place = self.path(name);
        let duration = match self.take(name).map(|node| node.value) {
            None => return Ok(None),
            Some(Value::String(text)) => parse_duration(&text),
            Some(Value::Number(text)) => text.parse().ok().map(Duration::from_secs),
            Some(_) => None,
        };
        duration.map(Some).ok_or_else(|| not_a_duration(&place))
    }

    /// Text under `name`, or bytes as base64 under `base64_name`; never both.
    pub(crate) fn bytes(&mut self, name: &'static str, base64_name: &'static str) -> Result<Option<Bytes>, Problem> {
        let encoded = self.text(base64_name)?;
        match (self.text(name)?, encoded) {
            (Some(_), Some(_)) => Err(self.wrong(name, &format!("possible together with `{base64_name}`"))),
            (Some(text), None) => Ok(Some(Bytes::from(text.into_owned().into_bytes()))),
            (None, Some(encoded)) => {
                let bytes = from_base64(&encoded).ok_or_else(|| self.wrong(base64_name, "base64"))?;
                Ok(Some(bytes.into()))
            }
            (None, None) => Ok(None),
        }
    }

    /// `key` or `key_base64`, not empty and not too long.
    pub(crate) fn key(&mut self) -> Result<Option<Bytes>, Problem> {
        self.bytes("key", "key_base64")?.map(checked).transpose()
    }

    pub(crate) fn require_key(&mut self) -> Result<Bytes, Problem> {
        match self.key()? {
            Some(key) => Ok(key),
            None => {
                let path = self.path("key");
                Err(Problem::body(format!("`{path}` (or `{path}_base64`) is missing")).text("parameter", &path))
            }
        }
    }

    /// `value`, `value_base64` or `value_json`, and whether it was the last.
    pub(crate) fn value(&mut self) -> Result<Option<(Bytes, bool)>, Problem> {
        let json = self.take("value_json");
        match (self.bytes("value", "value_base64")?, json) {
            (Some(_), Some(_)) => Err(self.wrong("value_json", "possible together with another form of the value")),
            (Some(value), None) => Ok(Some((value, false))),
            // Exactly as written: nothing is rounded, sorted or escaped differently.
            (None, Some(node)) => Ok(Some((Bytes::copy_from_slice(node.raw), true))),
            (None, None) => Ok(None),
        }
    }
}

/// Scalars of a POST action: by query or as members of the JSON body. Given twice, they must agree.
#[derive(Debug)]
pub(crate) struct Scalars<'q, 'a> {
    query: &'q Query,
    fields: Fields<'a>,
}

impl<'q, 'a> Scalars<'q, 'a> {
    /// An empty body, or one that holds only what curl sends without asking, is no members.
    pub(crate) fn new(query: &'q Query, body: &'a [u8]) -> Result<Self, Problem> {
        let fields = if body.is_empty() { Fields::none() } else { Fields::of(parse_body(body)?, "")? };
        Ok(Self { query, fields })
    }

    /// A member of the body that is read elsewhere.
    pub(crate) fn skip(&mut self, name: &'static str) {
        self.fields.take(name);
    }

    pub(crate) fn int(&mut self, name: &'static str) -> Result<Option<i64>, Problem> {
        agree(name, self.query.int(name)?, self.fields.int(name)?)
    }

    pub(crate) fn revision(&mut self, name: &'static str) -> Result<Option<i64>, Problem> {
        match self.int(name)? {
            Some(negative) if negative < 0 => Err(Problem::parameter(name, format!("`{name}` is never negative"))),
            value => Ok(value),
        }
    }

    pub(crate) fn duration(&mut self, name: &'static str) -> Result<Option<Duration>, Problem> {
        agree(name, self.query.duration(name)?, self.fields.duration(name)?)
    }

    pub(crate) fn text(&mut self, name: &'static str) -> Result<Option<String>, Problem> {
        agree(name, self.query.text(name)?.map(str::to_owned), self.fields.text(name)?.map(Cow::into_owned))
    }

    pub(crate) fn choice<T: Copy>(&mut self, name: &'static str, choices: &[(&str, T)]) -> Result<Option<T>, Problem> {
        self.text(name)?.map(|text| choose(name, &text, choices)).transpose()
    }

    /// False if it is not given.
    pub(crate) fn flag(&mut self, name: &'static str) -> Result<bool, Problem> {
        Ok(self.maybe_flag(name)?.unwrap_or(false))
    }

    pub(crate) fn maybe_flag(&mut self, name: &'static str) -> Result<Option<bool>, Problem> {
        agree(name, self.query.maybe_flag(name)?, self.fields.bool(name)?)
    }

    pub(crate) fn finish(self) -> Result<(), Problem> {
        self.fields.finish()
    }
}

fn agree<T: PartialEq>(name: &str, query: Option<T>, body: Option<T>) -> Result<Option<T>, Problem> {
    match (query, body) {
        (Some(query), Some(body)) if query != body => {
            Err(Problem::parameter(name, format!("`{name}` differs between the query and the body")))
        }
        (query, body) => Ok(query.or(body)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::query::Names;
    use super::*;
    use crate::api::problem::Around;

    fn fields(text: &str) -> Fields<'_> {
        Fields::of(parse(text.as_bytes()).unwrap(), "then[0].put").unwrap()
    }

    fn text(problem: Problem) -> String {
        let around = Around { mutates: false, revision: None, request_id: "", pretty: false };
        String::from_utf8(problem.to_json(around)).unwrap()
    }

    #[test]
    fn a_misspelt_member_is_refused_with_a_suggestion_and_its_place() {
        let mut put = fields(r#"{"key":"a","vlaue":"1"}"#);
        put.require_key().unwrap();
        put.value().unwrap();
        let problem = text(put.finish().unwrap_err());
        assert!(
            problem.contains(r#""suggestion":"value""#) && problem.contains(r#""place":"then[0].put""#),
            "{problem}"
        );
    }

    #[test]
    fn values_come_in_one_of_three_forms() {
        assert_eq!(fields(r#"{"value":"\u00e4"}"#).value().unwrap(), Some((Bytes::from("ä"), false)));
        assert_eq!(fields(r#"{"value_base64":"/wA="}"#).value().unwrap(), Some((Bytes::from_static(b"\xff\0"), false)));
        assert_eq!(fields(r#"{"value_base64":"/wA"}"#).value().unwrap(), Some((Bytes::from_static(b"\xff\0"), false)));
        let json = r#"{"value_json":{"b": 1.0, "a":12345678901234567890}}"#;
        assert_eq!(fields(json).value().unwrap(), Some((Bytes::from(r#"{"b": 1.0, "a":12345678901234567890}"#), true)));
        assert_eq!(fields("{}").value().unwrap(), None);
        for both in
            [r#"{"value":"a","value_base64":"YQ=="}"#, r#"{"value":"a","value_json":1}"#, r#"{"value_base64":"?"}"#]
        {
            assert!(fields(both).value().is_err(), "{both}");
        }
    }

    #[test]
    fn wrong_types_name_their_place() {
        let problem = text(fields(r#"{"by":"1"}"#).int("by").unwrap_err());
        assert!(problem.contains("`then[0].put.by` is not a 64-bit integer"), "{problem}");
        for wrong in [r#"{"by":1.0}"#, r#"{"by":9223372036854775808}"#, r#"{"by":null}"#] {
            assert!(fields(wrong).int("by").is_err(), "{wrong}");
        }
        assert!(fields(r#"{"key":""}"#).require_key().is_err());
        assert!(fields(r#"{}"#).require_key().is_err());
    }

    #[test]
    fn scalars_by_query_and_body_must_agree() {
        let names = Names { allowed: &[&["add", "for", "on_limit"]], later: &[] };
        let query = Query::parse(Some("add=5&for=1m"), &names).unwrap();
        let mut scalars = Scalars::new(&query, br#"{"add":5,"for":60,"on_limit":"clamp"}"#).unwrap();
        assert_eq!(scalars.int("add").unwrap(), Some(5));
        assert_eq!(scalars.duration("for").unwrap(), Some(Duration::from_secs(60)));
        assert_eq!(scalars.choice("on_limit", &[("fail", 0), ("clamp", 1)]).unwrap(), Some(1));
        scalars.finish().unwrap();
        let mut scalars = Scalars::new(&query, br#"{"add":6}"#).unwrap();
        assert!(text(scalars.int("add").unwrap_err()).contains(r#""parameter":"add""#));
        assert!(Scalars::new(&query, b"[]").is_err());
        assert!(Scalars::new(&query, b"").is_ok());
    }
}
