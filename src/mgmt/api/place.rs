//! Where the faults lie of a table that was validated as the end of a whole configuration: within
//! the table by line and column, and in the rest, which its author has not before him, by name. Pure.

use super::problem::Problem;
use crate::mgmt::config::{ConfigError, Invalid};

/// What is wrong with a `whole` text of which the caller wrote what follows the first `before` lines.
/// The detail is without lines: it also goes to those who gave the values, and a program wrote the text.
pub(super) fn invalid_part(whole: &str, before: usize, invalid: &Invalid) -> Problem {
    let (mut reasons, mut faults) = (Vec::new(), Vec::new());
    for fault in &invalid.faults {
        let reason = with_names(whole, before, &fault.error);
        faults.push(match fault.line.checked_sub(before) {
            None | Some(0) => format!("{}: {reason}", table(whole, fault.line)),
            Some(line) => format!("{line}:{}: {reason}", fault.column),
        });
        reasons.push(reason);
    }
    Problem::invalid(reasons.join(" / "), faults)
}

/// The reason, with what is there in the place of "on line N".
fn with_names(whole: &str, before: usize, error: &ConfigError) -> String {
    let reason = error.to_string();
    let Some(line) = error.other_line() else {
        return reason;
    };
    let place = match line.checked_sub(before) {
        None | Some(0) => format!("in {}", table(whole, line)),
        Some(line) => format!("on line {line}"),
    };
    // Names that may say the same stand before it.
    match reason.rsplit_once(&format!("on line {line}")) {
        Some((start, end)) => format!("{start}{place}{end}"),
        None => reason,
    }
}

/// What a line belongs to, in words: `service "web"`, `backend "a" of service "web"`.
fn table(whole: &str, line: usize) -> String {
    let lines: Vec<&str> = whole.lines().collect();
    let header = |list: &str, upto: usize| lines[..upto].iter().rposition(|line| *line == list);
    let end = line.min(lines.len());
    let lists = ["[[port]]", "[[service]]", "[[service.backend]]"];
    let found = lists.map(|list| header(list, end));
    let named = |kind: &str, at: usize| {
        let name = lines[at..]
            .iter()
            .find_map(|line| line.strip_prefix("name = "));
        format!("{kind} {}", name.unwrap_or("without a name"))
    };
    match found {
        [_, Some(service), Some(backend)] if backend > service => {
            let (backend, service) = (named("backend", backend), named("service", service));
            format!("{backend} of {service}")
        }
        [_, Some(service), _] => named("service", service),
        [Some(port), None, None] => named("port", port),
        _ => "the configuration".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mgmt::config::parse;

    const BEFORE: &str = r#"[workers]
cores = "1"
[[port]]
name = "wan"
device = "net_null0"
addresses = ["192.0.2.2/24"]
[[service]]
name = "web"
listen = "tcp:198.51.100.80:80"
method = "nat"
scheduler = "rr"
[[service.backend]]
name = "a"
address = "192.0.2.11"
"#;

    fn faults(before: &str, part: &str) -> Vec<String> {
        let whole = format!("{before}{part}");
        let before = before.lines().count();
        invalid_part(&whole, before, &parse(&whole).unwrap_err()).faults
    }

    #[test]
    fn a_fault_of_the_part_has_its_line_and_column_there() {
        let part = "[[service.backend]]\nname = \"b\"\naddress = \"192.0.2.256\"\n";
        let faults = faults(BEFORE, part);
        assert!(
            faults[0].starts_with("3:11: service.backend.address = "),
            "{faults:?}"
        );
    }

    #[test]
    fn what_it_collides_with_is_named() {
        let again = "[[service.backend]]\nname = \"b\"\naddress = \"192.0.2.11\"\n";
        assert_eq!(
            faults(BEFORE, again),
            [
                "3:11: 192.0.2.11:80 is already used in backend \"a\" of service \"web\"; remove one and add their weights"
            ]
        );
        let service = "[[service]]\nname = \"web\"\nlisten = \"tcp:198.51.100.80:80\"\n\
                       method = \"nat\"\nscheduler = \"rr\"\n";
        let listened = "is already listened on, in service \"web\"; remove one of them";
        assert!(
            faults(BEFORE, service)
                .iter()
                .any(|fault| fault.ends_with(listened)),
            "{:?}",
            faults(BEFORE, service)
        );
        let twice = format!("{again}{}", again.replace("\"b\"", "\"c\"")).replace(".11", ".12");
        assert_eq!(
            faults(BEFORE, &twice),
            ["6:11: 192.0.2.12:80 is already used on line 3; remove one and add their weights"]
        );
    }

    #[test]
    fn values_that_speak_of_lines_stay_as_they_are() {
        let part = "[[service.backend]]\nname = \"on line 9\"\naddress = \"192.0.2.12\"\n";
        let told = faults(BEFORE, part);
        assert!(
            told[0].starts_with("2:8: service.backend.name = \"on line 9\" is not a name"),
            "{told:?}"
        );
    }

    #[test]
    fn a_fault_of_the_rest_is_named() {
        let before = BEFORE.replace("method = \"nat\"\n", "");
        let port = BEFORE.replace("addresses = [\"192.0.2.2/24\"]\n", "mtu = 1\n");
        let workers = BEFORE.replace("cores = \"1\"", "cores = \"x\"");
        assert!(faults(&before, "")[0].starts_with("service \"web\": "));
        assert!(faults(&port, "")[0].starts_with("port \"wan\": "));
        assert!(faults(&workers, "")[0].starts_with("the configuration: "));
    }
}
