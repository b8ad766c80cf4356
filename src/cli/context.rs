//! The client's file, `~/.config/tenure/config.toml`: named sets of defaults.

use super::exit::CliError;
use super::output::Mode;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Names another file.
const FILE_VARIABLE: &str = "TENURE_CLIENT_CONFIG";

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// The context that is used when none is named.
    current: Option<String>,
    #[serde(default)]
    contexts: BTreeMap<String, Context>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Context {
    pub(super) endpoints: Option<Vec<String>>,
    pub(super) timeout: Option<String>,
    pub(super) output: Option<Mode>,
    /// A name; the password comes from the file, or is asked for.
    pub(super) user: Option<String>,
    pub(super) password_file: Option<PathBuf>,
}

/// The named context, else the current one, else nothing.
pub(super) fn load(name: Option<&str>) -> Result<Context, CliError> {
    let Some(path) = path() else { return chosen(File::default(), name, "the client's file") };
    let shown = path.display().to_string();
    match std::fs::read_to_string(&path) {
        Ok(text) => chosen(parse(&text, &shown)?, name, &shown),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => chosen(File::default(), name, &shown),
        Err(error) => Err(CliError::io(&shown, &error)),
    }
}

fn path() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os(FILE_VARIABLE) {
        return Some(named.into());
    }
    let base = match std::env::var_os("XDG_CONFIG_HOME").filter(|dir| !dir.is_empty()) {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".config"),
    };
    Some(base.join("tenure").join("config.toml"))
}

fn parse(text: &str, shown: &str) -> Result<File, CliError> {
    toml::from_str(text).map_err(|error| CliError::other(format!("{shown}: {}", error.to_string().trim())))
}

fn chosen(file: File, name: Option<&str>, shown: &str) -> Result<Context, CliError> {
    let Some(wanted) = name.map(str::to_owned).or(file.current) else { return Ok(Context::default()) };
    let known: Vec<String> = file.contexts.keys().cloned().collect();
    file.contexts.into_iter().find(|(name, _)| *name == wanted).map(|(_, context)| context).ok_or_else(|| {
        let known = if known.is_empty() { "it has none".to_owned() } else { format!("it has {}", known.join(", ")) };
        CliError::Usage(format!("there is no context {wanted:?} in {shown}; {known}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "current = \"dev\"\n[contexts.dev]\nendpoints = [\"a:1\"]\n[contexts.prod]\nendpoints = [\"b:1\", \"c:1\"]\ntimeout = \"10s\"\noutput = \"json\"\n";

    fn choose(name: Option<&str>) -> Result<Context, CliError> {
        chosen(parse(FILE, "f").unwrap(), name, "f")
    }

    #[test]
    fn the_named_context_else_the_current_one() {
        assert_eq!(choose(None).unwrap().endpoints, Some(vec!["a:1".to_owned()]));
        let prod = choose(Some("prod")).unwrap();
        assert_eq!((prod.timeout.as_deref(), prod.output), (Some("10s"), Some(Mode::Json)));
        assert_eq!(chosen(File::default(), None, "f").unwrap(), Context::default());
    }

    #[test]
    fn an_unknown_context_is_a_usage_error_that_lists_the_known_ones() {
        let error = choose(Some("test")).unwrap_err();
        assert_eq!(
            (error.exit_code(), error.to_string().as_str()),
            (2, "there is no context \"test\" in f; it has dev, prod")
        );
    }

    #[test]
    fn unknown_members_are_refused() {
        assert!(parse("[contexts.x]\nendpoint = \"a\"", "f").unwrap_err().to_string().contains("endpoint"));
    }
}
