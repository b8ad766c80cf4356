//! openapi.yaml as a judge: finds the operation an answer belongs to and says whether status,
//! headers, content type and body are what the document promises.
//!
//! Strict on purpose: an undocumented status, header or content type is an error. It knows nothing of
//! the server's code.

use jsonschema::{Draft, Validator};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::LazyLock;

/// Headers of HTTP itself, which the document does not speak of.
const OF_HTTP: &[&str] = &["content-type", "content-length", "date", "connection", "transfer-encoding", "vary"];
const METHODS: &[&str] = &["get", "head", "put", "patch", "post", "delete", "options", "trace"];

/// Read once for all tests.
pub(crate) static CONTRACT: LazyLock<Contract> = LazyLock::new(|| Contract::read(include_str!("../../openapi.yaml")));

#[derive(Debug)]
pub(crate) struct Contract {
    document: Value,
    pub(crate) operations: Vec<Operation>,
}

#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) id: String,
    /// Upper case.
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) curl: Vec<String>,
    /// `$ref`s of the operation's own levels are resolved.
    pub(crate) parameters: Vec<Value>,
    pub(crate) request: BTreeMap<String, Value>,
    pub(crate) responses: BTreeMap<u16, Value>,
}

/// What a server said.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The content type without its parameters.
    pub(crate) fn media_type(&self) -> Option<&str> {
        Some(self.header("content-type")?.split(';').next()?.trim())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    pub(crate) fn code(&self) -> Option<String> {
        Some(self.json().get("code")?.as_str()?.to_owned())
    }
}

impl Contract {
    pub(crate) fn read(text: &str) -> Self {
        let document: Value = serde_saphyr::from_str(text).expect("openapi.yaml is YAML");
        let mut contract = Self { document, operations: Vec::new() };
        let paths = contract.document["paths"].as_object().expect("paths").clone();
        for (path, item) in &paths {
            let shared = item.get("parameters");
            for method in METHODS {
                if let Some(operation) = item.get(*method) {
                    let operation = contract.operation(path, method, shared, operation);
                    contract.operations.push(operation);
                }
            }
        }
        contract
    }

    fn operation(&self, path: &str, method: &str, shared: Option<&Value>, operation: &Value) -> Operation {
        let text =
            |name: &str| operation[name].as_str().unwrap_or_else(|| panic!("{method} {path} has no {name}")).to_owned();
        let lists = [shared, operation.get("parameters")].into_iter().flatten();
        let content = |holder: &Value| -> BTreeMap<String, Value> {
            let content = holder.get("content").and_then(Value::as_object).cloned().unwrap_or_default();
            content.into_iter().collect()
        };
        let responses = operation["responses"].as_object().expect("responses");
        Operation {
            id: text("operationId"),
            method: method.to_uppercase(),
            path: path.to_owned(),
            curl: text("x-curl").lines().map(str::to_owned).collect(),
            parameters: lists
                .flat_map(|list| list.as_array().expect("a list"))
                .map(|p| self.resolve(p).clone())
                .collect(),
            request: operation.get("requestBody").map(content).unwrap_or_default(),
            responses: responses
                .iter()
                .map(|(status, response)| (status.parse().expect("a status"), self.resolve(response).clone()))
                .collect(),
        }
    }

    /// The target of a `$ref`, or the value itself.
    pub(crate) fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value.get("$ref").and_then(Value::as_str) {
            Some(target) if value.as_object().is_some_and(|members| members.len() == 1) => {
                let pointer = target.trim_start_matches('#');
                self.document.pointer(pointer).unwrap_or_else(|| panic!("{target} leads nowhere"))
            }
            _ => value,
        }
    }

    /// The schema as a document of its own: its references lead into our components.
    pub(crate) fn validator(&self, schema: &Value) -> Validator {
        let schemas = json!({ "schemas": self.document["components"]["schemas"] });
        let rooted = json!({ "allOf": [schema], "components": schemas });
        let options = jsonschema::options().with_draft(Draft::Draft202012).offline();
        options.build(&rooted).unwrap_or_else(|error| panic!("not a schema: {error}\n{schema}"))
    }

    pub(crate) fn schema(&self, name: &str) -> &Value {
        &self.document["components"]["schemas"][name]
    }

    pub(crate) fn responses(&self) -> &Map<String, Value> {
        self.document["components"]["responses"].as_object().expect("components.responses")
    }

    pub(crate) fn by_id(&self, id: &str) -> &Operation {
        self.operations.iter().find(|operation| operation.id == id).unwrap_or_else(|| panic!("no operation {id}"))
    }

    /// Everything that the document and the answer disagree about.
    pub(crate) fn judge(&self, operation: &Operation, answer: &Answer) -> Vec<String> {
        let Some(response) = operation.responses.get(&answer.status) else {
            return vec![format!("status {} is not documented", answer.status)];
        };
        self.judge_response(response, answer, operation.method == "HEAD")
    }

    /// As `judge`, against one of `components.responses`.
    pub(crate) fn judge_response(&self, response: &Value, answer: &Answer, head: bool) -> Vec<String> {
        let mut wrong = self.judge_headers(response, answer);
        wrong.extend(self.judge_body(response, answer, head));
        wrong
    }

    fn judge_headers(&self, response: &Value, answer: &Answer) -> Vec<String> {
        let mut wrong = Vec::new();
        let none = Map::new();
        let documented = response.get("headers").and_then(Value::as_object).unwrap_or(&none);
        for (name, header) in documented {
            let header = self.resolve(header);
            match answer.header(name) {
                None if header["required"] == true => wrong.push(format!("header {name} is missing")),
                None => {}
                Some(value) => {
                    let instance = value.parse::<i64>().map_or_else(|_| json!(value), |number| json!(number));
                    let validator = self.validator(&header["schema"]);
                    // A header is text: what looks like a number may be meant as text.
                    if !validator.is_valid(&instance) && !validator.is_valid(&json!(value)) {
                        wrong.push(format!("header {name}: {value:?} does not fit"));
                    }
                }
            }
        }
        for (name, _) in &answer.headers {
            let known = documented.keys().any(|known| known.eq_ignore_ascii_case(name));
            if !known && !OF_HTTP.contains(&name.as_str()) {
                wrong.push(format!("header {name} is not documented"));
            }
        }
        wrong
    }

    fn judge_body(&self, response: &Value, answer: &Answer, head: bool) -> Vec<String> {
        let Some(content) = response.get("content").and_then(Value::as_object) else {
            return if answer.body.is_empty() { Vec::new() } else { vec!["a body where none is documented".into()] };
        };
        let Some(media_type) = answer.media_type() else { return vec!["no content type".into()] };
        let Some(described) = content.get(media_type).or_else(|| content.get("*/*")) else {
            return vec![format!("content type {media_type} is not documented")];
        };
        if head {
            return if answer.body.is_empty() { Vec::new() } else { vec!["a body in the answer to HEAD".into()] };
        }
        let validator = self.validator(&described["schema"]);
        let complain = |text: &[u8]| match serde_json::from_slice::<Value>(text) {
            Err(error) => vec![format!("not JSON: {error}: {}", String::from_utf8_lossy(text))],
            Ok(value) => {
                validator.iter_errors(&value).map(|error| format!("{error} at {}", error.instance_path())).collect()
            }
        };
        match media_type {
            "application/x-ndjson" => {
                answer.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).flat_map(complain).collect()
            }
            json if json == "application/json" || json.ends_with("+json") => {
                let mut wrong = complain(&answer.body);
                if !answer.body.ends_with(b"\n") && !content.contains_key("*/*") {
                    wrong.push("a JSON answer that does not end with a newline".into());
                }
                wrong
            }
            _ => Vec::new(),
        }
    }
}
