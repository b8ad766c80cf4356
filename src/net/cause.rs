//! What an error comes from in the end: libraries wrap what the system said in layers that say less.

/// The innermost error's words.
#[must_use]
pub fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}
