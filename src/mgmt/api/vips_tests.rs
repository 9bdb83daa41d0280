//! The VIPs, the drain of the whole, and whether traffic is wanted.

use axum::http::StatusCode;

use super::tests::{ask, send, with_server};
use super::{Drain, Problem, Ready, VipStatus, read_only_path};

#[test]
fn a_drained_appliance_is_not_ready_and_only_the_whole_socket_drains() {
    with_server("drain", async |socket| {
        let read_only = read_only_path(&socket);
        let vips = ask(&read_only, "GET", "/v1/vips").await;
        assert_eq!(vips.json::<Vec<VipStatus>>().len(), 1);
        let ready = ask(&read_only, "GET", "/v1/ready?service=web").await;
        assert_eq!(ready.json::<Ready>(), Ready { ready: true });

        let json = [("content-type", "application/json")];
        let drain = "{\"drain\": true}";
        let refused = send(&read_only, "PUT", "/v1/drain", &json, drain).await;
        assert_eq!(refused.status, StatusCode::NOT_FOUND);
        let drained = send(&socket, "PUT", "/v1/drain", &json, drain).await;
        assert_eq!(drained.json::<Drain>(), Drain { drain: true });
        let ready = ask(&read_only, "GET", "/v1/ready").await;
        assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
        let problem: Problem = ready.json();
        assert_eq!(problem.detail, "not ready: it is drained");

        for body in ["", "{\"drian\": true}", "{\"drain\": 1}"] {
            let refused = send(&socket, "PUT", "/v1/drain", &json, body).await;
            assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{body}");
        }
        let query = ask(&socket, "GET", "/v1/ready?servce=web").await;
        assert_eq!(query.status, StatusCode::BAD_REQUEST);
    });
}
