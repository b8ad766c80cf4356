//! The server's flags, made from the one list of its settings.

use crate::node::config::{Config, ConfigError, KEYS, Layers, env_name, etcd_flags};
use clap::{Arg, ArgMatches, Command, FromArgMatches};
use std::collections::BTreeMap;
use std::path::PathBuf;

const CONFIG: &str = "config";
/// Between `dev` and its members, so it is in nobody's help.
pub(super) const END_WITH: &str = "end-with";
/// Named like a setting, but it says where settings are.
const CONFIG_VARIABLE: &str = "TENURE_CONFIG";

#[derive(Debug, Clone, Default)]
pub(super) struct ServerFlags {
    file: Option<PathBuf>,
    values: BTreeMap<String, String>,
    /// The process that this one ends with.
    end_with: Option<u32>,
}

impl ServerFlags {
    pub(super) fn end_with(&self) -> Option<u32> {
        self.end_with
    }

    /// Flags over this process's environment over the file over the defaults.
    pub(super) fn layered(self) -> Result<Config, ConfigError> {
        let env = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Config::layer(Layers::gather(self.values, env, self.file.as_deref())?)
    }

    /// Only this file over the defaults.
    pub(super) fn only_file(file: &std::path::Path) -> Result<Config, ConfigError> {
        Config::layer(Layers::gather(BTreeMap::new(), BTreeMap::new(), Some(file))?)
    }
}

impl FromArgMatches for ServerFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        self.file = matches.get_one::<PathBuf>(CONFIG).cloned();
        self.end_with = matches.get_one::<u32>(END_WITH).copied();
        for key in KEYS {
            if let Some(values) = matches.get_many::<String>(key.name) {
                let values: Vec<&str> = values.map(String::as_str).collect();
                self.values.insert(key.name.to_owned(), values.join(","));
            }
        }
        for name in etcd_flags() {
            if let Some(value) = matches.get_one::<String>(name) {
                self.values.insert(name.to_owned(), value.clone());
            }
        }
        Ok(())
    }
}

impl clap::Args for ServerFlags {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new(CONFIG)
            .long(CONFIG)
            .value_name("FILE")
            .env(CONFIG_VARIABLE)
            .hide_env_values(true)
            .value_parser(clap::value_parser!(PathBuf))
            .help("TOML file with settings [default: /etc/tenure/tenure.toml if there is one]");
        let end_with = Arg::new(END_WITH).long(END_WITH).hide(true).value_parser(clap::value_parser!(u32));
        // What starts etcd starts this; people who begin here need not know those names.
        let command = etcd_flags().fold(command.arg(file).arg(end_with), |command, name| {
            command.arg(Arg::new(name).long(name).hide(true).num_args(0..=1).default_missing_value("true"))
        });
        KEYS.iter().fold(command, |command, key| {
            let default = if key.default.is_empty() { String::new() } else { format!(" [default: {}]", key.default) };
            let reload = if key.live { " [SIGHUP reloads it]" } else { "" };
            let help = format!("{}{default} [env: {}]{reload}", key.help, env_name(key.name));
            let arg = Arg::new(key.name).long(key.name).value_name(key.value_name).help(help);
            command.arg(match key.value_name {
                // A list may also be given one by one.
                "URL,…" => arg.action(clap::ArgAction::Append),
                "true|false" => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
                _ => arg,
            })
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Args as _;

    fn flags(args: &[&str]) -> ServerFlags {
        let matches = ServerFlags::augment_args(Command::new("t")).try_get_matches_from([&["t"], args].concat());
        ServerFlags::from_arg_matches(&matches.unwrap()).unwrap()
    }

    #[test]
    fn every_setting_is_a_flag() {
        for key in KEYS {
            let typed = flags(&[&format!("--{}=x", key.name)]);
            assert_eq!(typed.values.get(key.name).map(String::as_str), Some("x"));
            assert_eq!(typed.values.len(), 1, "what was not typed must not look typed");
        }
    }

    #[test]
    fn a_repeated_list_is_one_list() {
        assert_eq!(flags(&["--join", "a", "--join=b,c"]).values["join"], "a,b,c");
    }

    #[test]
    fn a_switch_needs_no_value() {
        assert_eq!(flags(&["--etcd-metrics"]).values["etcd-metrics"], "true");
        assert_eq!(flags(&["--etcd-metrics=false"]).values["etcd-metrics"], "false");
    }
}
