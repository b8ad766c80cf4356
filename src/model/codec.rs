//! The versioned bytes of what is logged or stored: one version byte, then `postcard`.

use super::Fault;
use serde::{Serialize, de::DeserializeOwned};

const VERSION: u8 = 1;

/// Encodes a value of the model. Cannot fail for plain data; a failure is a fault of ours.
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, Fault> {
    postcard::to_extend(value, vec![VERSION]).map_err(|error| Fault::Invariant(format!("encode: {error}")))
}

/// Decodes what `encode` made; trailing bytes, a foreign version or damage are faults.
pub fn decode<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, Fault> {
    match bytes.split_first() {
        Some((&VERSION, rest)) => match postcard::take_from_bytes(rest) {
            Ok((value, [])) => Ok(value),
            Ok(_) => Err(Fault::corrupt(what, "trailing bytes")),
            Err(error) => Err(Fault::corrupt(what, error.to_string())),
        },
        Some((version, _)) => Err(Fault::corrupt(what, format!("format version {version} is unknown to this release"))),
        None => Err(Fault::corrupt(what, "empty")),
    }
}
