//! The contract, as it was built in.

use super::{PLAIN, text};
use crate::api::call::{Call, Outcome};
use crate::api::problem::Problem;
use crate::api::status::Code;
use std::sync::LazyLock;

const YAML: &str = include_str!("../../../openapi.yaml");

/// Made once, when first asked for: the YAML file is the only source.
static JSON: LazyLock<Option<String>> = LazyLock::new(|| {
    let document: serde_json::Value = serde_saphyr::from_str(YAML).ok()?;
    let mut json = document.to_string();
    json.push('\n');
    Some(json)
});

pub(crate) fn yaml(call: &mut Call) -> Outcome {
    call.query(&PLAIN)?;
    Ok(text(hyper::StatusCode::OK, "application/yaml", YAML))
}

pub(crate) fn json(call: &mut Call) -> Outcome {
    call.query(&PLAIN)?;
    let document = JSON.as_deref();
    let document = document.ok_or_else(|| Problem::new(Code::Internal, "the embedded contract is not readable"))?;
    Ok(text(hyper::StatusCode::OK, "application/json", document))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_contract_becomes_json() {
        let document: serde_json::Value = serde_json::from_str(JSON.as_deref().unwrap()).unwrap();
        assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    }
}
