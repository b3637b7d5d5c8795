//! Freezes what is mounted from a block device, says so, and holds it until standard input ends; for the
//! tests of freezing. `freezer DEVICE SECONDS FREEZE THAW [NEEDED...]`: the commands may be empty.

use std::env;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::process::ExitCode;
use std::time::Duration;

use voltar_engine::cancel::Cancel;
use voltar_engine::host::freeze::{Freeze, during};
use voltar_engine::observe::Observer;

/// Prints what it is told.
struct Printer;

impl Observer for Printer {
    fn notice(&self, text: &str) {
        println!("notice: {text}");
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [device, seconds, command, thaw, needed @ ..] = &arguments[..] else {
        eprintln!("freezer DEVICE SECONDS FREEZE THAW [NEEDED...]");
        return ExitCode::from(2);
    };
    let words = |words: &String| Some(words.clone()).filter(|words| !words.is_empty());
    let freeze = Freeze {
        command: words(command),
        thaw: words(thaw),
        devices: vec![std::fs::metadata(device).expect("there is such a device").rdev()],
        needed: needed.iter().map(Into::into).collect(),
        longest: Duration::from_secs(seconds.parse().expect("seconds are a number")),
    };
    let held = during(&freeze, &Printer, &Cancel::new(), || {
        println!("held");
        io::stdout().flush().expect("standard output is there");
        io::stdin().read_to_end(&mut Vec::new()).expect("standard input is there");
        Ok(())
    });
    match held {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
