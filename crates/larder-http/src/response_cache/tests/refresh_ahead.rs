//! Refresh-ahead of responses.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_response_that_is_due_is_served_at_once_and_refreshed_by_one_request() {
    let larder = larder();
    let origin = Origin::new(layer(&larder).refresh_ahead(0.2), numbered);
    origin.get("/").await;
    tokio::time::advance(MINUTE / 60 * 47).await;
    origin.get("/").await;
    assert_eq!(origin.calls(), 1, "more than a fifth is left");
    tokio::time::advance(MINUTE / 60 * 2).await;
    for _ in 0..5 {
        assert_eq!(origin.get("/").await, ("larder; hit; ttl=11".into(), "answer 1".into()));
    }
    assert!(larder.close(MINUTE).await);
    assert_eq!(origin.get("/").await, ("larder; hit; ttl=60".into(), "answer 2".into()));
    assert_eq!(origin.calls(), 2);
}

/// The refresh of a page for all clients is sent with the head of the request that found it due.
#[tokio::test(start_paused = true)]
async fn a_refresh_does_not_store_the_fields_of_the_user_that_caused_it() {
    let larder = larder();
    let origin = Origin::new(layer(&larder).shared().refresh_ahead(0.5), |request, call| {
        let user = request.headers().get(header::COOKIE);
        Response::new(text(format!("{user:?} {call}")))
    });
    let ask = async |cookie: Option<&str>| {
        let mut asking = request("/");
        if let Some(cookie) = cookie {
            asking = asking.header(header::COOKIE, cookie);
        }
        read(origin.send(asking).await).await.1
    };
    assert_eq!(ask(None).await, "None 1");
    tokio::time::advance(MINUTE / 60 * 40).await;
    assert_eq!(ask(Some("session=ada")).await, "None 1");
    assert!(larder.close(MINUTE).await);
    assert_eq!(ask(None).await, "None 2");
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_an_invalidation_overtakes_is_not_served() {
    let larder = larder();
    let (began, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (started, gate) = (began.clone(), go.clone());
    let origin = Origin::asynchronous(layer(&larder).refresh_ahead(0.5), move |_, call| {
        let (started, gate) = (started.clone(), gate.clone());
        async move {
            if call == 2 {
                started.notify_one();
                gate.notified().await;
            }
            Response::new(text(format!("answer {call}")))
        }
    });
    origin.get("/").await;
    tokio::time::advance(MINUTE / 60 * 40).await;
    origin.get("/").await;
    began.notified().await;
    let _ = larder.invalidate(Target::path("/")).await;
    go.notify_one();
    assert!(larder.close(MINUTE).await);
    assert_eq!(origin.get("/").await.1, "answer 3");
}
