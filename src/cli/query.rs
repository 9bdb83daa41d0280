//! The query of a request to the management interface.

/// `path` with those of the pairs that have a value.
pub(super) fn query<const N: usize>(path: &str, pairs: [(&str, Option<String>); N]) -> String {
    let given = pairs
        .into_iter()
        .filter_map(|(key, value)| Some(format!("{key}={}", encode(&value?))));
    format!("{path}?{}", given.collect::<Vec<_>>().join("&"))
}

/// Percent-encoding of everything but RFC 3986's unreserved characters.
pub(super) fn encode(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            encoded += &format!("%{byte:02X}");
        }
    }
    encoded
}
