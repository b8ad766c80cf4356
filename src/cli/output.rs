//! Standard output: modes, colours, and what may be sent to a terminal.

use super::args::Global;
use super::exit::CliError;
use anstream::{AutoStream, ColorChoice};
use clap::ValueEnum;
use comfy_table::{ContentArrangement, Row, Table, presets};
use owo_colors::{OwoColorize as _, Style};
use serde::{Deserialize, Serialize};
use std::io::{BufWriter, IsTerminal as _, Stdout, Write as _};

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mode {
    /// For people
    #[default]
    Human,
    /// One JSON document
    Json,
    /// One JSON document a line
    Ndjson,
    /// Only the bytes of the value
    Value,
    /// `NAME=value` lines for a shell (get)
    Env,
    /// A flat YAML map (get)
    Yaml,
    /// A Java properties file (get)
    Properties,
}

impl Mode {
    /// Refuses a mode that the command has no meaning for.
    pub(super) fn among(self, modes: &[Mode]) -> Result<Self, CliError> {
        if modes.contains(&self) {
            return Ok(self);
        }
        let names: Vec<String> = modes.iter().map(|mode| mode.name()).collect();
        Err(CliError::Usage(format!("this command has no output {}; it has {}", self.name(), names.join(", "))))
    }

    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Colour {
    Auto,
    Always,
    Never,
}

pub(super) fn colour_for_stderr(colour: Colour) -> bool {
    decided(colour, || AutoStream::choice(&std::io::stderr()))
}

/// `Auto` follows the terminal, NO_COLOR, CLICOLOR and TERM.
fn decided(colour: Colour, auto: impl Fn() -> ColorChoice) -> bool {
    match colour {
        Colour::Always => true,
        Colour::Never => false,
        Colour::Auto => auto() != ColorChoice::Never,
    }
}

#[derive(Debug)]
pub(super) struct Out {
    stdout: BufWriter<Stdout>,
    terminal: bool,
    colour: bool,
}

impl Out {
    pub(super) fn new(global: &Global) -> Self {
        let stdout = std::io::stdout();
        let terminal = stdout.is_terminal();
        let colour = decided(global.color, || AutoStream::choice(&std::io::stdout()));
        Self { stdout: BufWriter::new(stdout), terminal, colour }
    }

    pub(super) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Bytes exactly as they are.
    pub(super) fn bytes(&mut self, bytes: &[u8]) -> Result<(), CliError> {
        self.stdout.write_all(bytes).map_err(|error| CliError::output(&error))
    }

    pub(super) fn line(&mut self, text: impl AsRef<str>) -> Result<(), CliError> {
        self.bytes(text.as_ref().as_bytes())?;
        self.bytes(b"\n")
    }

    /// A document on one line; laid out for reading on a terminal.
    pub(super) fn json(&mut self, document: &impl Serialize) -> Result<(), CliError> {
        let text = if self.terminal { serde_json::to_string_pretty(document) } else { serde_json::to_string(document) };
        self.line(text.map_err(|error| CliError::other(error.to_string()))?)
    }

    /// As `json`, always on one line.
    pub(super) fn json_line(&mut self, document: &impl Serialize) -> Result<(), CliError> {
        self.line(serde_json::to_string(document).map_err(|error| CliError::other(error.to_string()))?)
    }

    /// A document that a member sent, unknown members and their order included.
    pub(super) fn json_as_sent(&mut self, document: &[u8]) -> Result<(), CliError> {
        if self.terminal
            && let Ok(value) = serde_json::from_slice::<serde_json::Value>(document)
        {
            return self.json(&value);
        }
        self.bytes(document.trim_ascii_end())?;
        self.bytes(b"\n")
    }

    pub(super) fn paint(&self, text: &str, style: Style) -> String {
        if self.colour { text.style(style).to_string() } else { text.to_owned() }
    }

    /// Columns without borders: cut to the width of a terminal, in full when piped.
    pub(super) fn table(&mut self, header: &[&str], rows: Vec<Vec<String>>) -> Result<(), CliError> {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        let arrangement = if self.terminal { ContentArrangement::Dynamic } else { ContentArrangement::Disabled };
        table.set_content_arrangement(arrangement);
        let style = Style::new().bold();
        let colour = self.colour;
        table.set_header(
            header.iter().map(|name| if colour { name.style(style).to_string() } else { (*name).to_owned() }),
        );
        for cells in rows {
            let mut row = Row::from(cells);
            if self.terminal {
                row.max_height(1);
            }
            table.add_row(row);
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let text = table.trim_fmt();
        self.line(text)
    }

    pub(super) fn flush(&mut self) -> Result<(), CliError> {
        self.stdout.flush().map_err(|error| CliError::output(&error))
    }
}

impl Drop for Out {
    fn drop(&mut self) {
        // `flush` has reported what there was to report.
        self.stdout.flush().ok();
    }
}

/// Bytes for people: text stays, what would act on a terminal or is no text is escaped.
pub(super) fn shown(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() { text.extend(c.escape_default()) } else { text.push(c) }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_never_reach_a_terminal() {
        assert_eq!(shown("grüße\n\x1b[2J".as_bytes()), "grüße\\n\\u{1b}[2J");
        assert_eq!(shown(b"a\xff\xfeb\0"), "a\\xff\\xfeb\\u{0}");
    }

    #[test]
    fn modes_are_refused_by_name() {
        let error = Mode::Yaml.among(&[Mode::Human, Mode::Json]).unwrap_err();
        assert_eq!(error.to_string(), "this command has no output yaml; it has human, json");
        assert_eq!(Mode::Json.among(&[Mode::Json]).unwrap(), Mode::Json);
    }

    #[test]
    fn an_explicit_choice_of_colour_wins() {
        assert!(decided(Colour::Always, || ColorChoice::Never));
        assert!(!decided(Colour::Never, || ColorChoice::Always));
        assert!(!decided(Colour::Auto, || ColorChoice::Never));
    }
}
