//! Writes evenkeel's man pages and its completions for bash, zsh and fish into a folder, from the
//! command line's own description: `cargo run --example manual -- FOLDER`.

use std::path::Path;
use std::process::ExitCode;
use std::{env, fs, io};

use clap::CommandFactory as _;
use clap_complete::Shell;
use evenkeel::cli::Cli;

fn main() -> ExitCode {
    let Some(folder) = env::args_os().nth(1) else {
        eprintln!("usage: manual FOLDER");
        return ExitCode::from(2);
    };
    match write(Path::new(&folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", Path::new(&folder).display());
            ExitCode::FAILURE
        }
    }
}

fn write(folder: &Path) -> io::Result<()> {
    let (man, completions) = (folder.join("man"), folder.join("completions"));
    fs::create_dir_all(&man)?;
    fs::create_dir_all(&completions)?;
    clap_mangen::generate_to(Cli::command(), man)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Cli::command(), "evenkeel", &completions)?;
    }
    Ok(())
}
