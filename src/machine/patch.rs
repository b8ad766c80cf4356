//! RFC 7396 merge patch on the text of JSON.
//!
//! Invariants: whatever the patch does not touch keeps its text, numbers above all: nothing is
//! parsed into a float. The result is compact (no white space outside strings), members of every
//! object that the patch reaches into are in byte order of their names, and the same texts give the
//! same bytes everywhere.

use crate::model::limits;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PatchError {
    /// The stored value is not JSON.
    Target,
    /// The patch is not JSON, or nested too deep.
    Patch,
}

/// `target` with `patch` merged into it.
pub(crate) fn merge(target: &[u8], patch: &[u8]) -> Result<Vec<u8>, PatchError> {
    let target = parse(target).ok_or(PatchError::Target)?;
    let patch = parse(patch).ok_or(PatchError::Patch)?;
    let mut out = String::with_capacity(target.get().len() + patch.get().len());
    merge_into(&mut out, Some(target), patch, 0)?;
    Ok(out.into_bytes())
}

fn parse(bytes: &[u8]) -> Option<&RawValue> {
    serde_json::from_str(std::str::from_utf8(bytes).ok()?).ok()
}

fn merge_into(out: &mut String, target: Option<&RawValue>, patch: &RawValue, depth: usize) -> Result<(), PatchError> {
    if depth >= limits::JSON_DEPTH_MAX {
        return Err(PatchError::Patch);
    }
    if !is_object(patch) {
        write_compact(out, patch);
        return Ok(());
    }
    let mut members: BTreeMap<String, Member<'_>> = BTreeMap::new();
    if let Some(target) = target.filter(|target| is_object(target)) {
        let old: BTreeMap<String, &RawValue> = serde_json::from_str(target.get()).map_err(|_| PatchError::Target)?;
        members.extend(old.into_iter().map(|(name, value)| (name, Member { old: Some(value), change: None })));
    }
    let changes: BTreeMap<String, &RawValue> = serde_json::from_str(patch.get()).map_err(|_| PatchError::Patch)?;
    for (name, change) in changes {
        members.entry(name).or_default().change = Some(change);
    }
    out.push('{');
    let mut separator = "";
    for (name, member) in members {
        if member.change.is_some_and(|change| change.get() == "null") {
            continue;
        }
        out.push_str(separator);
        separator = ",";
        out.push_str(&serde_json::to_string(&name).map_err(|_| PatchError::Patch)?);
        out.push(':');
        match (member.old, member.change) {
            (old, Some(change)) => merge_into(out, old, change, depth + 1)?,
            (Some(old), None) => write_compact(out, old),
            (None, None) => unreachable!("a member comes from one of the two"),
        }
    }
    out.push('}');
    Ok(())
}

#[derive(Default)]
struct Member<'a> {
    old: Option<&'a RawValue>,
    change: Option<&'a RawValue>,
}

fn is_object(value: &RawValue) -> bool {
    value.get().trim_ascii_start().starts_with('{')
}

fn write_compact(out: &mut String, value: &RawValue) {
    let mut in_string = false;
    let mut escaped = false;
    for character in value.get().chars() {
        if in_string {
            in_string = escaped || character != '"';
            escaped = !escaped && character == '\\';
        } else if character.is_ascii_whitespace() {
            continue;
        } else {
            in_string = character == '"';
        }
        out.push(character);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn merged(target: &str, patch: &str) -> String {
        String::from_utf8(merge(target.as_bytes(), patch.as_bytes()).unwrap()).unwrap()
    }

    #[test]
    fn the_cases_of_the_rfc() {
        for (target, patch, result) in [
            (r#"{"a":"b"}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"b":"c"}"#, r#"{"a":"b","b":"c"}"#),
            (r#"{"a":"b"}"#, r#"{"a":null}"#, r"{}"),
            (r#"{"a":"b","b":"c"}"#, r#"{"a":null}"#, r#"{"b":"c"}"#),
            (r#"{"a":["b"]}"#, r#"{"a":"c"}"#, r#"{"a":"c"}"#),
            (r#"{"a":"c"}"#, r#"{"a":["b"]}"#, r#"{"a":["b"]}"#),
            (r#"{"a":{"b":"c"}}"#, r#"{"a":{"b":"d","c":null}}"#, r#"{"a":{"b":"d"}}"#),
            (r#"{"a":[{"b":"c"}]}"#, r#"{"a":[1]}"#, r#"{"a":[1]}"#),
            (r#"["a","b"]"#, r#"["c","d"]"#, r#"["c","d"]"#),
            (r#"{"a":"b"}"#, r#"["c"]"#, r#"["c"]"#),
            (r#"{"a":"foo"}"#, "null", "null"),
            (r#"{"a":"foo"}"#, r#""bar""#, r#""bar""#),
            (r#"{"e":null}"#, r#"{"a":1}"#, r#"{"a":1,"e":null}"#),
            (r"[1,2]", r#"{"a":"b","c":null}"#, r#"{"a":"b"}"#),
            (r"{}", r#"{"a":{"bb":{"ccc":null}}}"#, r#"{"a":{"bb":{}}}"#),
        ] {
            assert_eq!(merged(target, patch), result, "{target} + {patch}");
        }
    }

    #[test]
    fn untouched_numbers_keep_their_text() {
        let odd = "1.10,1e400,0.1e-7,123456789012345678901234567890.5,-0,1E+2";
        assert_eq!(
            merged(&format!(r#"{{ "n" : [ {odd} ], "x": 1 }}"#), r#"{"x": 2.50}"#),
            format!(r#"{{"n":[{odd}],"x":2.50}}"#)
        );
    }

    #[test]
    fn strings_keep_white_space_quotes_and_escapes() {
        assert_eq!(
            merged(r#" {"k \" \\" : "a \" b\\" , "z": [ "  ", {"q" : 1} ] } "#, r#"{"y":"\u0041 b"}"#),
            r#"{"k \" \\":"a \" b\\","y":"\u0041 b","z":["  ",{"q":1}]}"#
        );
    }

    #[test]
    fn what_is_not_json_is_told_apart() {
        assert_eq!(merge(b"nope", b"{}"), Err(PatchError::Target));
        assert_eq!(merge(b"{} trailing", b"{}"), Err(PatchError::Target));
        assert_eq!(merge(b"\xff", b"{}"), Err(PatchError::Target));
        assert_eq!(merge(b"{}", b"{"), Err(PatchError::Patch));
        let deep = format!("{}1{}", r#"{"a":"#.repeat(1000), "}".repeat(1000));
        assert_eq!(merge(b"{}", deep.as_bytes()), Err(PatchError::Patch));
    }

    fn documents() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(json!(null)),
            any::<i32>().prop_map(|n| json!(n)),
            "[a-c \\\\\"]{0,4}".prop_map(|s| json!(s))
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::Array),
                proptest::collection::btree_map("[a-d]", inner, 0..4).prop_map(|map| json!(map)),
            ]
        })
    }

    proptest! {
        #[test]
        fn agrees_with_the_library(target in documents(), patch in documents()) {
            let mut expected = target.clone();
            json_patch::merge(&mut expected, &patch);
            let spaced = serde_json::to_string_pretty(&target).unwrap();
            prop_assert_eq!(merged(&spaced, &patch.to_string()), expected.to_string());
        }
    }
}
