//! The appliance's socket, spoken to without a program in between: a thousand changes take a second.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::Value;

use super::process::PATIENCE;

/// One kept connection.
pub struct Api {
    stream: BufReader<UnixStream>,
}

impl Api {
    pub fn connect(socket: &Path) -> Api {
        let stream = UnixStream::connect(socket).expect("the socket of a running evenkeel");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        Api {
            stream: BufReader::new(stream),
        }
    }

    /// The status and the body of the answer. A body that begins as JSON does is sent as JSON.
    pub fn ask(&mut self, method: &str, path: &str, body: &str) -> (u16, String) {
        let kind = match body.starts_with(['{', '"']) {
            true => "application/json",
            false => "application/toml",
        };
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: evenkeel\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        let sent = self.stream.get_mut().write_all(request.as_bytes());
        sent.expect("room for a request");
        let mut line = || {
            let mut line = String::new();
            self.stream.read_line(&mut line).expect("an answer");
            line.trim_end().to_ascii_lowercase()
        };
        let status = line().split(' ').nth(1).and_then(|word| word.parse().ok());
        let mut length = 0;
        loop {
            let header = line();
            if header.is_empty() {
                break;
            }
            if let Some(value) = header.strip_prefix("content-length: ") {
                length = value.parse().expect("a length");
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).expect("the whole answer");
        let body = String::from_utf8(body).expect("UTF-8");
        (status.expect("a status"), body)
    }

    /// Makes a change that must be taken.
    pub fn change(&mut self, method: &str, path: &str, body: &str) {
        let (status, answer) = self.ask(method, path, body);
        assert!((200..300).contains(&status), "{method} {path}: {answer}");
    }

    pub fn status(&mut self) -> Value {
        let (status, body) = self.ask("GET", "/v1/status", "");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).expect("JSON from status")
    }
}
