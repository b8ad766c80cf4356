//! Standard output: modes, colours, and what may be sent to a terminal.

use super::args::Global;
use super::exit::CliError;
use anstream::{AutoStream, ColorChoice};
use clap::ValueEnum;
use comfy_table::{Attribute, Cell, ColumnConstraint, ContentArrangement, Row, Table, Width, presets};
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
        let text = serde_json::to_string(document).map_err(|error| CliError::other(error.to_string()))?;
        if self.terminal { self.line(indented(&text)) } else { self.line(text) }
    }

    /// As `json`, always on one line.
    pub(super) fn json_line(&mut self, document: &impl Serialize) -> Result<(), CliError> {
        self.line(serde_json::to_string(document).map_err(|error| CliError::other(error.to_string()))?)
    }

    /// A document that a member sent, unknown members and their order included.
    pub(super) fn json_as_sent(&mut self, document: &[u8]) -> Result<(), CliError> {
        match std::str::from_utf8(document) {
            Ok(text) if self.terminal => self.line(indented(text)),
            _ => {
                self.bytes(document.trim_ascii_end())?;
                self.bytes(b"\n")
            }
        }
    }

    pub(super) fn paint(&self, text: &str, style: Style) -> String {
        if self.colour { text.style(style).to_string() } else { text.to_owned() }
    }

    /// Columns without borders, in full when piped. On a terminal that is too narrow the last column
    /// is cut; where that does not help, a single row is written as a list.
    pub(super) fn table(&mut self, header: &[&str], rows: Vec<Vec<String>>) -> Result<(), CliError> {
        let width = if self.terminal { terminal_width() } else { None };
        match layout(header, &rows, width) {
            Layout::List => {
                let label_width = header.iter().map(|name| name.len()).max().unwrap_or(0);
                for (name, cell) in header.iter().zip(rows.iter().flatten()) {
                    let name = self.paint(&format!("{name:<label_width$}"), Style::new().bold());
                    self.line(format!("{name}  {cell}"))?;
                }
                Ok(())
            }
            Layout::Columns { last_width } => {
                let text = columns(header, rows, last_width, self.colour);
                self.line(text)
            }
        }
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

#[derive(Debug, PartialEq, Eq)]
enum Layout {
    /// The last column is cut to `last_width`, if there is one.
    Columns { last_width: Option<u16> },
    /// One `NAME  value` line per column.
    List,
}

const GAP: usize = 2;
/// Less than this of the last column tells nothing.
const LAST_WIDTH_MIN: usize = 16;
/// What reports less has no idea.
const TERMINAL_WIDTH_MIN: u16 = 20;

fn terminal_width() -> Option<u16> {
    Table::new().width().filter(|width| *width >= TERMINAL_WIDTH_MIN)
}

fn layout(header: &[&str], rows: &[Vec<String>], width: Option<u16>) -> Layout {
    let Some(width) = width.map(usize::from) else { return Layout::Columns { last_width: None } };
    let mut table = Table::new();
    table.set_header(header.iter().copied());
    table.add_rows(rows.iter().cloned());
    let widths: Vec<usize> = table.column_max_content_widths().into_iter().map(usize::from).collect();
    let total: usize = widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
    let last = widths.last().copied().unwrap_or(0);
    let room = width.saturating_sub(total - last);
    if total <= width {
        Layout::Columns { last_width: None }
    } else if room >= LAST_WIDTH_MIN {
        Layout::Columns { last_width: u16::try_from(room).ok() }
    } else if rows.len() == 1 {
        Layout::List
    } else {
        Layout::Columns { last_width: None }
    }
}

fn columns(header: &[&str], rows: Vec<Vec<String>>, last_width: Option<u16>, colour: bool) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|name| Cell::new(name).add_attribute(Attribute::Bold)));
    if colour {
        table.enforce_styling()
    } else {
        table.force_no_tty()
    };
    for cells in rows {
        let mut row = Row::from(cells);
        if last_width.is_some() {
            row.max_height(1);
        }
        table.add_row(row);
    }
    let last = table.column_count().saturating_sub(1);
    for (index, column) in table.column_iter_mut().enumerate() {
        let gap = if index == last { 0 } else { u16::try_from(GAP).unwrap_or(0) };
        column.set_padding((0, gap));
        if let Some(width) = last_width.filter(|_| index == last) {
            column.set_constraint(ColumnConstraint::UpperBoundary(Width::Fixed(width)));
        }
    }
    table.trim_fmt()
}

/// Lays a document out for reading, token by token: members keep their order and numbers their digits.
fn indented(document: &str) -> String {
    let mut text = String::with_capacity(document.len() * 2);
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    let mut chars = document.chars().peekable();
    while let Some(c) = chars.next() {
        if in_string {
            text.push(c);
            in_string = escaped || c != '"';
            escaped = c == '\\' && !escaped;
            continue;
        }
        match c {
            '{' | '[' => {
                text.push(c);
                while chars.next_if(char::is_ascii_whitespace).is_some() {}
                match chars.next_if(|next| matches!(next, '}' | ']')) {
                    Some(end) => text.push(end),
                    None => {
                        depth += 1;
                        new_line(&mut text, depth);
                    }
                }
            }
            '}' | ']' => {
                depth = depth.saturating_sub(1);
                new_line(&mut text, depth);
                text.push(c);
            }
            ',' => {
                text.push(c);
                new_line(&mut text, depth);
            }
            ':' => text.push_str(": "),
            _ if c.is_ascii_whitespace() => {}
            _ => {
                in_string = c == '"';
                text.push(c);
            }
        }
    }
    text
}

fn new_line(text: &mut String, depth: usize) {
    text.push('\n');
    text.extend(std::iter::repeat_n("  ", depth));
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

    fn rows(cells: &[&[&str]]) -> Vec<Vec<String>> {
        cells.iter().map(|row| row.iter().map(|cell| (*cell).to_owned()).collect()).collect()
    }

    #[test]
    fn columns_line_up_without_borders() {
        let text = columns(&["KEY", "VALUE"], rows(&[&["a", "1"], &["long", "22"]]), None, false);
        assert_eq!(text, "KEY   VALUE\na     1\nlong  22");
        assert!(columns(&["KEY"], rows(&[&["a"]]), None, true).contains('\x1b'));
    }

    #[test]
    fn a_narrow_terminal_cuts_the_last_column_only() {
        let long = "x".repeat(100);
        let cells = rows(&[&["key", &long], &["key2", "short"]]);
        assert_eq!(layout(&["KEY", "VALUE"], &cells, None), Layout::Columns { last_width: None });
        assert_eq!(layout(&["KEY", "VALUE"], &cells, Some(200)), Layout::Columns { last_width: None });
        assert_eq!(layout(&["KEY", "VALUE"], &cells, Some(40)), Layout::Columns { last_width: Some(34) });
        let text = columns(&["KEY", "VALUE"], cells, Some(34), false);
        assert!(text.lines().all(|line| line.chars().count() <= 40), "{text}");
        assert_eq!(text.lines().count(), 3, "{text}");
        assert!(text.contains("key2  short"), "{text}");
    }

    #[test]
    fn a_single_row_that_does_not_fit_becomes_a_list() {
        let one = rows(&[&["aaaaaaaaaa", "bbbbbbbbbb", "cc"]]);
        assert_eq!(layout(&["A", "B", "C"], &one, Some(24)), Layout::List);
        let two = [one.clone(), one].concat();
        assert_eq!(layout(&["A", "B", "C"], &two, Some(24)), Layout::Columns { last_width: None });
    }

    #[test]
    fn documents_are_laid_out_and_nothing_else() {
        let document = r#"{"z":[1, 9007199254740993,{"a":"q\"{,:\\"}],"e":{},"f":[ ],"b":null}"#;
        let text = indented(document);
        let wanted = "{\n  \"z\": [\n    1,\n    9007199254740993,\n    {\n      \"a\": \"q\\\"{,:\\\\\"\n    }\n  ],\n  \"e\": {},\n  \"f\": [],\n  \"b\": null\n}";
        assert_eq!(text, wanted);
        let value = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(value(&text), value(document));
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
