//! Changes to a configuration, without sockets.

use super::*;
use crate::mgmt::config::{Config, parse};

const TEXT: &str = r#"
[[port]]
name = "wan"
device = "net_null0"
addresses = ["192.0.2.2/24"]

[[service]]
name = "web"
listen = "tcp:198.51.100.80:80"
method = "nat"
scheduler = "wrr"
[[service.backend]]
name = "a"
address = "192.0.2.11"
[[service.backend]]
name = "b"
address = "192.0.2.12"

[[service]]
name = "last"
listen = "tcp:198.51.100.81:80"
method = "nat"
scheduler = "rr"
"#;

fn config() -> Config {
    parse(TEXT).unwrap()
}

fn weight(weight: u16) -> Edit {
    let set = BackendSettings {
        weight: Some(weight),
        ..BackendSettings::default()
    };
    Edit::SetBackend {
        service: "web".to_owned(),
        name: "a".to_owned(),
        set,
    }
}

#[test]
fn equal_configurations_share_a_tag() {
    let same = parse(&format!("# a comment\n{TEXT}")).unwrap();
    assert_eq!(etag(&config()), etag(&same));
    assert_ne!(etag(&config()), etag(&weight(2).apply(&config()).unwrap()));
}

#[test]
fn a_change_needs_the_tag_it_was_made_from() {
    let new = weight(2).apply(&config()).unwrap();
    let tag = etag(&config());
    let applied = decide(&config(), &new, Some(&tag), false).unwrap();
    assert_eq!(applied.etag, etag(&new));
    assert_eq!(
        applied.diff.changes[0].to_string(),
        "~ service web backend a: weight: default -> 2"
    );
    assert!(decide(&config(), &new, None, false).is_ok());
    assert!(decide(&config(), &new, Some("*"), false).is_ok());
    let problem = decide(&config(), &new, Some("\"0\""), false).unwrap_err();
    assert!(problem.is_overtaken(), "{problem:?}");
    let dry = decide(&config(), &new, Some(&tag), true).unwrap();
    assert_eq!((dry.etag, dry.dry_run), (tag, true));
}

#[test]
fn what_takes_a_restart_is_refused_whole() {
    let new = parse(
        &TEXT
            .replace("net_null0", "net_null1")
            .replace("\"rr\"", "\"mh\""),
    )
    .unwrap();
    let problem = decide(&config(), &new, None, false).unwrap_err();
    assert_eq!(problem.status, 409);
    assert!(
        problem
            .detail
            .contains("port[1].device: \"net_null0\" -> \"net_null1\""),
        "{problem:?}"
    );
    let dry = decide(&config(), &new, None, true).unwrap();
    assert_eq!(
        (dry.diff.changes.len(), dry.diff.needs_restart.len()),
        (1, 1)
    );
}

#[test]
fn parts_are_added_changed_and_removed_in_place() {
    let put = |name: &str, toml: &str| Edit::PutBackend {
        service: "web".to_owned(),
        name: name.to_owned(),
        toml: toml.to_owned(),
    };
    let new = "[[service.backend]]\nname = \"c\"\naddress = \"192.0.2.13\"\n";
    let added = put("c", new).apply(&config()).unwrap();
    let names = |config: &Config| -> Vec<String> {
        let backends = config.services.iter().flat_map(|service| &service.backends);
        backends.map(|backend| backend.name.clone()).collect()
    };
    assert_eq!(names(&added), ["a", "b", "c"]);
    assert_eq!(added.services[0].name, "web", "it stays where it was");
    let other = "[[service.backend]]\nname = \"a\"\naddress = \"192.0.2.14\"\n";
    let replaced = put("a", other).apply(&added).unwrap();
    assert_eq!(names(&replaced), ["a", "b", "c"]);
    assert_eq!(
        replaced.services[0].backends[0].address.to_string(),
        "192.0.2.14"
    );
    let remove = Edit::RemoveBackend {
        service: "web".to_owned(),
        name: "b".to_owned(),
    };
    assert_eq!(names(&remove.apply(&replaced).unwrap()), ["a", "c"]);
    let remove = Edit::RemoveService {
        name: "web".to_owned(),
    };
    assert_eq!(remove.apply(&config()).unwrap().services[0].name, "last");
    assert_eq!(
        weight(7).apply(&config()).unwrap().services[0].backends[0].weight,
        7
    );
}

#[test]
fn what_does_not_fit_is_refused_with_the_reason() {
    let backend = |toml: &str| {
        let (service, name) = ("web".to_owned(), "c".to_owned());
        Edit::PutBackend {
            service,
            name,
            toml: toml.to_owned(),
        }
        .apply(&config())
        .unwrap_err()
    };
    let head = "[[service.backend]]\nname = \"c\"\n";
    let problem = backend(&format!("{head}address = \"192.0.2.11\"\n"));
    assert_eq!(problem.status, 422);
    assert!(
        problem
            .detail
            .starts_with("192.0.2.11:80 is already used in backend \"a\" of service \"web\"; "),
        "{problem:?}"
    );
    let problem = backend(&format!(
        "{head}adress = \"192.0.2.13\"\naddress = \"192.0.2.13\"\n"
    ));
    assert!(
        problem.detail.contains("did you mean \"address\"?"),
        "{problem:?}"
    );
    assert_eq!(backend("[[service.backend]\n").status, 422);
    let problem = backend("[[service.backend]]\nname = \"d\"\naddress = \"192.0.2.13\"\n");
    assert_eq!(
        (problem.status, problem.title.as_str()),
        (400, "Another name")
    );
    let problem = Edit::RemoveService {
        name: "none".to_owned(),
    }
    .apply(&config())
    .unwrap_err();
    assert_eq!(problem.status, 404);
    let remove = Edit::RemoveBackend {
        service: "web".to_owned(),
        name: "z".to_owned(),
    };
    assert_eq!(remove.apply(&config()).unwrap_err().status, 404);
}

#[test]
fn another_table_size_is_warned_of() {
    let sized = |size: &str| {
        let hash = format!("scheduler = \"mh\"\n{size}");
        parse(&TEXT.replace("scheduler = \"rr\"", &hash)).unwrap()
    };
    let warnings = |old: &str, new: &str| {
        let applied = decide(&sized(old), &sized(new), None, true);
        applied.unwrap().warnings
    };
    let warned = warnings("", "table_size = 655373");
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(
        warned[0].starts_with("service last: table_size 65537 -> 655373 moves most clients"),
        "{warned:?}"
    );
    // The default written out is no change, and neither is another backend.
    assert!(warnings("", "table_size = 65537").is_empty());
    let more = weight(2).apply(&sized("")).unwrap();
    let applied = decide(&sized(""), &more, None, true).unwrap();
    assert!(applied.warnings.is_empty());
}
