//! The stream of events: server-sent events, one for each thing that happens.

use std::convert::Infallible;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::Sse;
use axum::response::sse::{self, KeepAlive};
use futures_util::stream::{self, Stream, StreamExt as _};
use serde::Deserialize;
use tokio::sync::broadcast::{self, error::RecvError};
use utoipa::IntoParams;

use super::problem::Problem;
use super::request::Handle;
use super::server::Failed;
use crate::mgmt::events::Event;

/// Where in the stream to begin.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct From {
    /// Begin with the events after the one of this number, as far as they are kept (the last 1,024
    /// are); 0 for all of them. Left out, the stream begins with the next event, or where a
    /// `Last-Event-ID` header says.
    after: Option<u64>,
    /// `false`: end after the events that are kept, all of them unless `after` says otherwise.
    #[serde(default = "always")]
    follow: bool,
}

fn always() -> bool {
    true
}

/// What happens, as server-sent events: `event` is the kind, `id` the event's number, and `data` the
/// event in JSON. A reader that is too slow gets an event `missed` with the count of those that it
/// lost. The stream ends with the program.
#[utoipa::path(get, path = "/v1/events", tag = "state", params(From, ("Last-Event-ID" = Option<String>, Header, description = "As `after`; what a reader sends that connects again")), responses((status = 200, description = "A stream without end", body = Event, content_type = "text/event-stream"), (status = "default", response = Failed)))]
pub(super) async fn events(
    State(handle): State<Handle>,
    from: Result<Query<From>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<sse::Event, Infallible>>>, Problem> {
    let Query(from) = from.map_err(|rejection| Problem::bad_query(&rejection.body_text()))?;
    let after = from.after.or_else(|| last_seen(&headers));
    let after = if from.follow {
        after
    } else {
        after.or(Some(0))
    };
    let feed = handle.events(after).await?;
    let kept = stream::iter(feed.kept.into_iter().map(|event| Ok(told(&event))));
    let coming = stream::unfold(from.follow.then_some(feed.coming), next);
    Ok(Sse::new(kept.chain(coming)).keep_alive(KeepAlive::default()))
}

fn last_seen(headers: &HeaderMap) -> Option<u64> {
    headers.get("last-event-id")?.to_str().ok()?.parse().ok()
}

type Coming = broadcast::Receiver<Event>;

async fn next(coming: Option<Coming>) -> Option<(Result<sse::Event, Infallible>, Option<Coming>)> {
    let mut coming = coming?;
    let event = match coming.recv().await {
        Ok(event) => told(&event),
        Err(RecvError::Lagged(count)) => sse::Event::default()
            .event("missed")
            .data(format!("{{\"missed\":{count}}}")),
        Err(RecvError::Closed) => return None,
    };
    Some((Ok(event), Some(coming)))
}

fn told(event: &Event) -> sse::Event {
    let told = sse::Event::default()
        .event(event.what.kind.token())
        .id(event.id.to_string());
    // Plain data: it can always be written as JSON.
    told.json_data(event).unwrap_or_default()
}
