//! The bodies of requests. What cannot be read is answered with a problem that has the line and the
//! column.

use axum::extract::{FromRequest, Request};
use serde::de::DeserializeOwned;

use super::problem::Problem;

/// A text, such as a configuration file.
pub(super) struct Text(pub String);

/// A value in JSON, whatever the request calls its type: `curl -d` calls all bodies forms.
pub(super) struct JsonBody<T>(pub T);

impl<S: Send + Sync> FromRequest<S> for Text {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let text = String::from_request(request, state).await;
        text.map(Text)
            .map_err(|rejection| Problem::bad_body(&rejection.body_text()))
    }
}

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let Text(text) = Text::from_request(request, state).await?;
        serde_json::from_str(&text)
            .map(JsonBody)
            .map_err(|error| Problem::bad_json(&error))
    }
}
