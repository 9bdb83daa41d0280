//! HTTP: one request, and which status and body are good.

use super::Failure;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, HeaderValue, USER_AGENT};
use hyper::http::uri::PathAndQuery;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use std::fmt;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use tokio::io::{AsyncRead, AsyncWrite};

/// As much of a body as is searched, bytes.
const MAX_BODY: usize = 64 * 1024;

/// Which status codes are good; it reads `200-299,301`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatusSet(Vec<RangeInclusive<u16>>);

impl Default for StatusSet {
    fn default() -> Self {
        Self(vec![200..=399])
    }
}

/// From ranges that have been validated.
impl FromIterator<RangeInclusive<u16>> for StatusSet {
    fn from_iter<I: IntoIterator<Item = RangeInclusive<u16>>>(ranges: I) -> Self {
        Self(ranges.into_iter().collect())
    }
}

impl fmt::Display for StatusSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, range) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            match (range.start(), range.end()) {
                (first, last) if first == last => write!(f, "{comma}{first}")?,
                (first, last) => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl StatusSet {
    #[must_use]
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

/// One HTTP/1.1 request.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpProbe {
    pub method: Method,
    /// The Host header; without one, the address and port that the probe speaks to.
    pub host: Option<String>,
    pub path: PathAndQuery,
    pub expect: StatusSet,
    /// Must occur in the first 64 KiB of the body.
    pub body: Option<String>,
}

impl Default for HttpProbe {
    fn default() -> Self {
        Self {
            method: Method::GET,
            host: None,
            path: PathAndQuery::from_static("/"),
            expect: StatusSet::default(),
            body: None,
        }
    }
}

impl HttpProbe {
    /// The name of the Host header, without its port.
    pub(super) fn host(&self) -> Option<&str> {
        let host = self.host.as_deref()?;
        match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => Some(name),
            _ => Some(host),
        }
    }

    /// Sends the request and judges the answer; the text says what it was.
    pub(super) async fn ask<S>(&self, stream: S, target: SocketAddr) -> Result<String, Failure>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let request = self.request(target)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(failure)?;
        let exchange = async move {
            let response = sender.send_request(request).await.map_err(failure)?;
            self.judge(response).await
        };
        tokio::pin!(exchange);
        tokio::select! {
            verdict = &mut exchange => verdict,
            // The server may close before the answer has been looked at; its bytes are here.
            _ = connection => exchange.await,
        }
    }

    fn request(&self, target: SocketAddr) -> Result<Request<Empty<Bytes>>, Failure> {
        let host = self.host.clone().unwrap_or_else(|| target.to_string());
        let host = HeaderValue::from_str(&host)
            .map_err(|_| Failure::NotChecked(format!("`{host}` is no host name")))?;
        let mut request = Request::new(Empty::new());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.path.clone().into();
        let headers = request.headers_mut();
        headers.insert(HOST, host);
        headers.insert(USER_AGENT, HeaderValue::from_static("evenkeel-health"));
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
        Ok(request)
    }

    async fn judge(&self, response: Response<Incoming>) -> Result<String, Failure> {
        let status = response.status().as_u16();
        if !self.expect.contains(status) {
            let expected = &self.expect;
            return Err(Failure::Answer(format!(
                "HTTP {status}, expected {expected}"
            )));
        }
        match &self.body {
            Some(needle) => find_in_body(response.into_body(), needle.as_bytes(), status).await,
            None => Ok(format!("HTTP {status}")),
        }
    }
}

async fn find_in_body(mut body: Incoming, needle: &[u8], status: u16) -> Result<String, Failure> {
    let mut seen = Vec::new();
    let found = |seen: &[u8]| needle.is_empty() || seen.windows(needle.len()).any(|w| w == needle);
    while !found(&seen) {
        let Some(frame) = body.frame().await.transpose().map_err(failure)? else {
            let missing = format!("HTTP {status}, but the expected text is not in the body");
            return Err(Failure::Answer(missing));
        };
        if let Some(data) = frame.data_ref() {
            seen.extend_from_slice(data);
        }
        if seen.len() > MAX_BODY {
            let missing = "the expected text is not in the first 64 KiB of the body";
            return Err(Failure::Answer(format!("HTTP {status}, but {missing}")));
        }
    }
    Ok(format!("HTTP {status}, expected text found"))
}

/// hyper's errors hide the cause that an operator needs.
fn failure(error: hyper::Error) -> Failure {
    let mut cause: &dyn std::error::Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    match cause.downcast_ref::<std::io::Error>() {
        Some(io) if io.kind() == std::io::ErrorKind::ConnectionReset => Failure::Reset,
        _ if error.is_incomplete_message() => {
            Failure::Answer("connection closed before the HTTP answer was complete".into())
        }
        _ => Failure::Answer(format!("no HTTP: {cause}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_sets() {
        let set: StatusSet = [200..=204, 301..=301, 599..=599].into_iter().collect();
        assert_eq!(set.to_string(), "200-204,301,599");
        let codes = [199, 200, 204, 205, 301, 599];
        let good = codes.map(|code| set.contains(code));
        assert_eq!(good, [false, true, true, false, true, true]);
    }

    #[test]
    fn the_hosts_name_is_without_its_port() {
        let named = |host: &str| HttpProbe {
            host: Some(host.into()),
            ..HttpProbe::default()
        };
        assert_eq!(named("www.example:8443").host(), Some("www.example"));
        assert_eq!(named("www.example").host(), Some("www.example"));
        assert_eq!(HttpProbe::default().host(), None);
    }
}
