//! `txn --interactive`: etcdctl's three questions, answered line by line, made into the API's JSON.

use crate::cli::exit::CliError;
use crate::client::form_of;
use serde_json::{Map, Value, json};
use std::io::{BufRead, Write};

/// Reads compares, then operations for success and for failure; an empty line ends each part.
pub(super) fn read(input: &mut dyn BufRead, prompts: &mut dyn Write, asks: bool) -> Result<Value, CliError> {
    let mut part = |question: &str, parse: fn(&str) -> Result<Value, String>| -> Result<Vec<Value>, CliError> {
        let mut values = Vec::new();
        if asks {
            writeln!(prompts, "{question}").map_err(|error| CliError::io("stderr", &error))?;
        }
        loop {
            let mut line = String::new();
            let read = input.read_line(&mut line).map_err(|error| CliError::io("standard input", &error))?;
            if read == 0 || line.trim().is_empty() {
                return Ok(values);
            }
            values
                .push(parse(line.trim()).map_err(|problem| CliError::Usage(format!("{:?}: {problem}", line.trim())))?);
        }
    };
    let compares = part("compares, such as value(\"k\") = \"v\", mod(\"k\") > \"3\":", compare)?;
    let success = part("success requests (get, put, del):", operation)?;
    let failure = part("failure requests (get, put, del):", operation)?;
    Ok(json!({ "if": compares, "then": success, "else": failure }))
}

/// `TARGET("KEY") OP "OPERAND"`, with the targets that etcdctl has.
fn compare(line: &str) -> Result<Value, String> {
    const EXPECTED: &str =
        "expected TARGET(\"KEY\") OP \"VALUE\" with target value, mod, create or version and =, !=, < or >";
    let (target, rest) = line.split_once('(').ok_or(EXPECTED)?;
    let (key, rest) = word(rest.trim_start()).ok_or(EXPECTED)?;
    let rest = rest.trim_start().strip_prefix(')').ok_or(EXPECTED)?.trim_start();
    let operator = ["!=", "=", "<", ">"].into_iter().find(|operator| rest.starts_with(operator)).ok_or(EXPECTED)?;
    let (operand, rest) = word(rest[operator.len()..].trim_start()).ok_or(EXPECTED)?;
    if !rest.trim().is_empty() {
        return Err(EXPECTED.to_owned());
    }
    let relation = match operator {
        "=" => "eq",
        "!=" => "ne",
        "<" => "lt",
        _ => "gt",
    };
    let number = || operand.parse::<i64>().map(Value::from).map_err(|_| format!("{operand:?} is not a number"));
    let (member, operand) = match target.trim() {
        "value" | "val" => ("value", Value::from(operand.clone())),
        "mod" | "modified" => ("revision", number()?),
        "create" | "c" => ("create_revision", number()?),
        "version" | "ver" => ("version", number()?),
        _ => return Err(EXPECTED.to_owned()),
    };
    Ok(json!({ "key": key, member: { relation: operand } }))
}

/// `put KEY VALUE`, `get KEY [--prefix]`, `del KEY [--prefix]`.
fn operation(line: &str) -> Result<Value, String> {
    let mut words = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let (next, after) = word(rest).ok_or("a quotation mark is not closed")?;
        words.push(next);
        rest = after.trim_start();
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["put", key, value] => {
            let mut put = Map::new();
            for (name, bytes) in [("key", key), ("value", value)] {
                let (name, text) = form_of(name, bytes.as_bytes());
                put.insert(name, text.into());
            }
            Ok(json!({ "put": put }))
        }
        ["get", key] => Ok(json!({ "get": { "key": key } })),
        ["del", key] => Ok(json!({ "delete": { "key": key } })),
        ["get", prefix, "--prefix"] | ["get", "--prefix", prefix] => Ok(json!({ "list": { "prefix": prefix } })),
        ["del", prefix, "--prefix"] | ["del", "--prefix", prefix] => Ok(json!({ "delete": { "prefix": prefix } })),
        _ => Err("expected put KEY VALUE, get KEY [--prefix] or del KEY [--prefix]".to_owned()),
    }
}

/// One word and what follows it: in double quotes with `\"`, `\\`, `\n`, `\t`, or bare up to white space or `)`.
fn word(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| c.is_whitespace() || c == ')').unwrap_or(text.len());
        return (end > 0).then(|| (text[..end].to_owned(), &text[end..]));
    };
    let mut word = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((word, &quoted[at + 1..])),
            '\\' => word.push(match chars.next()?.1 {
                'n' => '\n',
                't' => '\t',
                other => other,
            }),
            other => word.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcdctls_own_example() {
        let typed = "mod(\"key1\") > \"0\"\nvalue(\"k 2\") = \"it's \\\"x\\\"\"\n\nput key1 \"overwritten key1\"\nget a --prefix\n\nput key1 \"created-key1\"\ndel key2\n";
        let txn = read(&mut typed.as_bytes(), &mut Vec::new(), false).unwrap();
        assert_eq!(
            txn,
            json!({
                "if": [{"key": "key1", "revision": {"gt": 0}}, {"key": "k 2", "value": {"eq": "it's \"x\""}}],
                "then": [{"put": {"key": "key1", "value": "overwritten key1"}}, {"list": {"prefix": "a"}}],
                "else": [{"put": {"key": "key1", "value": "created-key1"}}, {"delete": {"key": "key2"}}],
            })
        );
    }

    #[test]
    fn prompts_only_for_people() {
        let mut prompts = Vec::new();
        read(&mut &b"\n\n\n"[..], &mut prompts, true).unwrap();
        assert_eq!(prompts.iter().filter(|byte| **byte == b'\n').count(), 3);
        let mut prompts = Vec::new();
        read(&mut &b""[..], &mut prompts, false).unwrap();
        assert!(prompts.is_empty());
    }

    #[test]
    fn what_makes_no_sense_is_a_usage_error() {
        for typed in
            ["mod(k) ~ 1", "mod(k) = x", "size(k) = 1", "mod k = 1", "value(\"k) = \"v\"", "value(k) = v extra"]
        {
            let error = read(&mut typed.as_bytes(), &mut Vec::new(), false).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{typed}");
        }
        for typed in ["\nput k", "\nfly k", "\nput k \"v"] {
            assert!(read(&mut typed.as_bytes(), &mut Vec::new(), false).is_err(), "{typed}");
        }
        assert_eq!(compare("version(k) != 3").unwrap(), json!({"key": "k", "version": {"ne": 3}}));
    }
}
