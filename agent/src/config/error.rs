use std::path::Path;

/// What is wrong with the settings: where, which key, why, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}: {}{problem}; {remedy}", if key.is_empty() { String::new() } else { format!("{key}: ") })]
pub struct ConfigError {
    /// The file, or what stands for one.
    pub file: String,
    /// Dotted key; empty if the file as a whole is meant.
    pub key: String,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

impl ConfigError {
    pub(super) fn new(file: &str, key: &str, problem: &str, remedy: &str) -> Self {
        Self { file: file.into(), key: key.into(), problem: problem.into(), remedy: remedy.into() }
    }

    pub(super) fn file(file: &Path, problem: &str, source: &std::io::Error) -> Self {
        let problem = format!("{problem}: {source}");
        Self::new(&file.display().to_string(), "", &problem, "check path and permissions")
    }

    /// Finds the key that a TOML error is about from its place in the text.
    pub(super) fn toml(file: &str, text: &str, error: &toml::de::Error) -> Self {
        let start = error.span().map_or(0, |span| span.start.min(text.len()));
        let line_start = text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line = text[line_start..].lines().next().unwrap_or_default();
        let key = line.split('=').next().unwrap_or_default().trim();
        let section = text[..line_start].lines().rev().find_map(|line| {
            let line = line.trim();
            line.strip_prefix('[')?.strip_suffix(']')
        });
        let key = match section {
            _ if line.trim_start().starts_with('[') => key.trim_matches(['[', ']']).to_owned(),
            Some(section) => format!("{section}.{key}"),
            None => key.to_owned(),
        };
        Self::at(file, text, start, &key, error.message())
    }

    /// A complaint about the key that stands `at` bytes into a file's text.
    pub(super) fn at(file: &str, text: &str, at: usize, key: &str, message: &str) -> Self {
        let before = &text.as_bytes()[..at.min(text.len().saturating_sub(1))];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        let remedy = if message.starts_with("unknown field") {
            "use one of the keys of the shipped agent.toml; units are part of the key"
        } else if message.contains("invalid type") && key.ends_with("_s") {
            "write a whole number of seconds, without quotes or unit"
        } else if message.contains("invalid type") && key.contains("bytes") {
            "write a whole number of bytes, without quotes or unit"
        } else {
            "compare it with the shipped agent.toml"
        };
        Self::new(file, key, &format!("line {line}: {message}"), remedy)
    }
}
