//! Whose the socket is: taken, left behind, or no socket at all.

use std::fs;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use super::tests::Scratch;
use super::{Socket, read_only_path};

#[test]
fn a_second_instance_is_refused_and_named() {
    let scratch = Scratch::new("second");
    let first = Socket::claim(&scratch.socket()).unwrap();
    let error = Socket::claim(&scratch.socket()).unwrap_err().to_string();
    let expected = format!(
        "another evenkeel (process {}) uses the socket {}; stop it, or set management.socket to another path",
        std::process::id(),
        scratch.socket().display()
    );
    assert_eq!(error, expected);
    drop(first);
    assert_eq!(scratch.files(), 0, "nothing is left behind");
    Socket::claim(&scratch.socket()).expect("the next one may start");
}

#[test]
fn what_a_killed_predecessor_left_is_replaced() {
    let scratch = Scratch::new("stale");
    fs::create_dir_all(scratch.0.join("run")).unwrap();
    drop(UnixListener::bind(scratch.socket()).unwrap());
    fs::write(scratch.0.join("run/evenkeel.sock.lock"), "4242").unwrap();
    let socket = Socket::claim(&scratch.socket()).unwrap();
    let mode = |path: PathBuf| {
        let found = fs::metadata(path).unwrap();
        assert!(found.file_type().is_socket());
        found.permissions().mode() & 0o777
    };
    assert_eq!(mode(scratch.socket()), 0o660);
    assert_eq!(mode(read_only_path(&scratch.socket())), 0o666);
    assert_eq!(socket.path(), scratch.socket());
}

#[test]
fn what_is_no_socket_is_left_alone() {
    let scratch = Scratch::new("file");
    fs::create_dir_all(scratch.0.join("run")).unwrap();
    fs::write(scratch.socket(), "mine").unwrap();
    let error = Socket::claim(&scratch.socket()).unwrap_err().to_string();
    assert!(error.contains("is no socket; remove it"), "{error}");
    assert_eq!(fs::read_to_string(scratch.socket()).unwrap(), "mine");
    assert_eq!(scratch.files(), 1, "the lock went away");
}

#[test]
fn unusable_paths_are_refused_in_one_line() {
    let scratch = Scratch::new("paths");
    let long = scratch.0.join("n".repeat(120));
    let error = Socket::claim(&long).unwrap_err().to_string();
    assert!(error.contains("is longer than the system takes"), "{error}");
    fs::write(scratch.0.join("file"), "").unwrap();
    let error = Socket::claim(&scratch.0.join("file/evenkeel.sock"))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("cannot create ") && error.contains("check management.socket"),
        "{error}"
    );
    assert!(!error.contains('\n'));
}
