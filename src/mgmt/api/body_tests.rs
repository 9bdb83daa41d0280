//! Broken bodies: each is answered with its line, its column and what to do, and changes nothing.

use super::problem::Problem;
use super::socket::read_only_path;
use super::tests::{ask, send, with_server};

const BACKEND: &str = "/v1/services/web/backends/a";

/// Method, path, body, and the fault that it is answered with.
const JSON: &[(&str, &str, &str, &str)] = &[
    ("PATCH", BACKEND, "{", "1:1: EOF while parsing an object"),
    ("PATCH", BACKEND, "", "1:0: EOF while parsing a value"),
    (
        "PATCH",
        BACKEND,
        "{\n  \"weight\": 5,\n}",
        "3:1: trailing comma",
    ),
    (
        "PATCH",
        BACKEND,
        "{\"weight\": 5} {}",
        "1:15: trailing characters",
    ),
    (
        "PATCH",
        BACKEND,
        "{\n  \"weight\": 65536\n}",
        "2:17: invalid value: integer `65536`, expected u16",
    ),
    (
        "PATCH",
        BACKEND,
        "{\"weight\": \"5\"}",
        "1:14: invalid type: string \"5\", expected u16",
    ),
    (
        "PATCH",
        BACKEND,
        "{\n  \"weight\": 5,\n  \"wieght\": 6\n}",
        "3:10: unknown field `wieght`, expected one of `weight`, `drain`, `upper`, `lower`",
    ),
    (
        "PATCH",
        BACKEND,
        "{\"drain\": 1}",
        "1:11: invalid type: integer `1`, expected a boolean",
    ),
    ("PUT", "/v1/drain", "{}", "1:2: missing field `drain`"),
];

/// Path, body in TOML, and one of the faults that it is answered with.
const TOML: &[(&str, &str, &str)] = &[
    (
        "/v1/config",
        "[[port]]\nname = 5\ndevice = \"net_null0\"\n",
        "2:8: port.name is a whole number; write a string in quotes",
    ),
    (
        "/v1/services/two",
        "[[service]]\nname = \"two\"\n",
        "1:1: [service] has no listen; add listen = [\"tcp:192.0.2.80:80\"]",
    ),
    (
        "/v1/services/web/backends/b",
        "[[service.backend]]\nname = \"b\"\n",
        "1:1: [service.backend] has no address; add address = \"192.0.2.11\"",
    ),
];

#[test]
fn a_broken_body_in_json() {
    with_server("json", async |socket| {
        let tag = ask(&socket, "GET", "/v1/config").await.etag;
        for (method, path, body, fault) in JSON {
            let answer = send(&socket, method, path, &[], body).await;
            let problem: Problem = answer.json();
            let fault = format!("{fault}; correct it");
            assert_eq!(problem.status, 400, "{body}");
            assert_eq!(problem.faults, [fault.as_str()], "{body}");
            assert_eq!(problem.detail, format!("the body cannot be used: {fault}"));
        }
        assert_eq!(ask(&socket, "GET", "/v1/config").await.etag, tag);
    });
}

#[test]
fn a_broken_body_in_toml() {
    with_server("toml", async |socket| {
        let tag = ask(&socket, "GET", "/v1/config").await.etag;
        for (path, body, fault) in TOML {
            let problem: Problem = send(&socket, "PUT", path, &[], body).await.json();
            assert_eq!(problem.status, 422, "{body}: {problem:?}");
            assert!(problem.faults.iter().any(|f| f == fault), "{problem:?}");
            assert!(!problem.detail.contains('\n'), "{problem:?}");
        }
        assert_eq!(ask(&socket, "GET", "/v1/config").await.etag, tag);
    });
}

#[test]
fn a_body_that_cannot_be_taken() {
    with_server("refused", async |socket| {
        let tag = ask(&socket, "GET", "/v1/config").await.etag;
        let other_device = "[[port]]\nname = \"p\"\ndevice = \"net_null1\"\n";
        let cases: [(&str, &str, &[u8], u16); 6] = [
            ("PUT", "/v1/config", other_device.as_bytes(), 409),
            ("PUT", "/v1/services/x?dry_run=maybe", b"", 400),
            ("PUT", "/v1/config", b"name = \"\xff\"", 400),
            ("PATCH", BACKEND, b"{\"\xff\": 1}", 400),
            ("PATCH", "/v1/services/web/backends/z", b"{}", 404),
            ("DELETE", "/v1/services/none", b"", 404),
        ];
        for (method, path, body, status) in cases {
            let problem: Problem = send(&socket, method, path, &[], body).await.json();
            assert_eq!(problem.status, status, "{method} {path}: {problem:?}");
            assert!(!problem.detail.contains('\n'), "{problem:?}");
        }
        let refused = send(
            &read_only_path(&socket),
            "PATCH",
            BACKEND,
            &[],
            "{\"weight\": 5}",
        )
        .await;
        assert!(
            refused.status.is_client_error(),
            "the read-only socket changes nothing"
        );
        assert_eq!(ask(&socket, "GET", "/v1/config").await.etag, tag);
    });
}
