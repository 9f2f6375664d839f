//! Results, errors and exit codes.

use std::error::Error;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Wrong arguments.
pub const USAGE: u8 = 2;
const FAILED: u8 = 1;
const INTERRUPTED: u8 = 130;

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub enum Failure {
    /// Something went wrong.
    Error(Box<dyn Error>),
    /// The arguments do not go together.
    Usage(String),
    /// Ctrl-C; the text says how to go on.
    Interrupted(String),
    /// Nobody reads standard output any more, which is no fault.
    Closed,
}

impl<E: Into<Box<dyn Error>>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Error(error.into())
    }
}

impl Failure {
    /// Says what happened on standard error.
    pub fn report(self) -> ExitCode {
        let (text, code) = match self {
            Self::Closed => return ExitCode::SUCCESS,
            Self::Error(error) => (format!("error: {}", chain(error.as_ref())), FAILED),
            Self::Usage(text) => (format!("error: {text}"), USAGE),
            Self::Interrupted(text) => (format!("interrupted: {text}"), INTERRUPTED),
        };
        let _ = writeln!(std::io::stderr(), "{text}");
        ExitCode::from(code)
    }
}

/// An error and what caused it, each on a line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let message = cause.to_string();
        // A transparent error says the same again.
        if !text.ends_with(&message) {
            text.push_str(&format!("\n  caused by: {message}"));
        }
        source = cause.source();
    }
    text
}

/// The command as it was given, without the folder that the program lies in.
pub fn command_line() -> String {
    let arguments = std::env::args().skip(1);
    std::iter::once("lopt".to_owned()).chain(arguments).collect::<Vec<_>>().join(" ")
}

/// Writes text to standard output.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Failure::Closed),
        result => Ok(result?),
    }
}

/// Writes one JSON object to standard output.
pub fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Makes the folder that a file shall lie in.
pub fn make_folder(path: &Path) -> Result<(), Failure> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .map_err(|e| format!("cannot make the folder {}: {e}", folder.display()))?;
    }
    Ok(())
}

/// Finds out before long work whether a file can be written after it.
pub fn check_target(path: &Path) -> Result<(), Failure> {
    if path.is_dir() {
        return Err(format!("{} is a folder, expected a file to write", path.display()).into());
    }
    make_folder(path)?;
    if !is_special(path) {
        let part = part(path);
        std::fs::File::create(&part)
            .and_then(|_| std::fs::remove_file(&part))
            .map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    }
    Ok(())
}

/// Checks all files that a command is to write, before it works for them.
pub fn check_targets<const N: usize>(paths: [Option<&PathBuf>; N]) -> Result<(), Failure> {
    paths.into_iter().flatten().try_for_each(|path| check_target(path))
}

/// Writes a file, whole or not at all; the error names it.
pub fn write_file(path: &Path, contents: &[u8]) -> Result<(), Failure> {
    make_folder(path)?;
    let write = || {
        if is_special(path) {
            return std::fs::write(path, contents);
        }
        let part = part(path);
        let written = std::fs::write(&part, contents).and_then(|()| std::fs::rename(&part, path));
        if written.is_err() {
            // The first error is the one to report; the leftover is ours.
            let _ = std::fs::remove_file(&part);
        }
        written
    };
    Ok(write().map_err(|e| format!("cannot write {}: {e}", path.display()))?)
}

/// Whether something is there that must not be replaced, as `/dev/null`.
fn is_special(path: &Path) -> bool {
    path.metadata().is_ok_and(|found| !found.is_file())
}

/// Where a file is written before it takes its name.
fn part(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn an_error_names_its_causes_once() {
        let error = Outer(std::io::Error::other("inner"));
        assert_eq!(chain(&error), "outer\n  caused by: inner");
    }
}
