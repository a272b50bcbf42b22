//! Sixty concurrent requests for one address cause only a few calls of the origin, even if it is slow, fails, panics or
//! breaks off.

use futures_util::future::join_all;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
const CLIENTS: usize = 60;

type Answer = (StatusCode, String, String);

/// Sends this request once for each client, all at the same time.
async fn at_once(origin: &Origin, ask: impl Fn(usize) -> http::request::Builder) -> Vec<Answer> {
    let answers = (0..CLIENTS).map(|at| {
        let answer = tokio::spawn(origin.send(ask(at)));
        async move {
            let answer = answer.await.unwrap();
            let code = answer.status();
            let (status, text) = read(answer).await;
            (code, status, text)
        }
    });
    join_all(answers).await
}

/// An origin that answers with this status and these fields after a third of a second.
fn failing(
    layer: ResponseCacheLayer,
    status: u16,
    fields: &'static [(&'static str, &'static str)],
) -> Origin {
    Origin::asynchronous(layer, move |_, call| async move {
        tokio::time::sleep(SECOND / 3).await;
        let mut response = Response::builder().status(status);
        for (name, value) in fields {
            response = response.header(*name, *value);
        }
        response.body(text(format!("error {call}"))).unwrap()
    })
}

#[tokio::test(start_paused = true)]
async fn an_error_is_shared_after_four_calls() {
    for status in [500, 502, 503, 504] {
        let origin = failing(layer(&larder()), status, &[("x-page", "error")]);
        let answers = at_once(&origin, |_| request("/")).await;
        assert_eq!(origin.calls(), 4, "{status}");
        assert!(answers.iter().all(|(code, ..)| code.as_u16() == status));
        let shared = answers.iter().filter(|(_, said, _)| said.contains("collapsed"));
        assert_eq!(shared.clone().count(), CLIENTS - 4);
        assert!(shared.clone().all(|(.., text)| text == "error 4"), "{status}");
    }
}

#[tokio::test(start_paused = true)]
async fn only_the_status_of_an_error_for_one_client_is_shared() {
    type Ask = fn(usize) -> http::request::Builder;
    type Fields = &'static [(&'static str, &'static str)];
    let rows: [(&str, Fields, Ask); 5] = [
        ("sets a cookie", &[("set-cookie", "a=b")], |_| request("/")),
        ("private", &[("cache-control", "private")], |_| request("/")),
        ("no-store", &[("cache-control", "no-store")], |_| request("/")),
        ("credentials", &[], |at| request("/").header("cookie", format!("user={at}"))),
        ("varies", &[("vary", "x-user")], |at| request("/").header("x-user", at)),
    ];
    for (what, fields, ask) in rows {
        let origin = failing(layer(&larder()), 503, fields);
        let answers = at_once(&origin, ask).await;
        assert_eq!(origin.calls(), 4, "{what}");
        assert!(answers.iter().all(|(code, ..)| *code == 503), "{what}");
        let texts = answers.iter().filter(|(.., text)| text.starts_with("error "));
        assert_eq!(texts.count(), 4, "{what}: each reached its own client alone");
    }
}

#[tokio::test(start_paused = true)]
async fn a_service_that_fails_or_panics_is_called_four_times() {
    for panics in [false, true] {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let inner = service_fn(move |_: Request<Empty<Bytes>>| {
            counted.fetch_add(1, Ordering::SeqCst);
            async move {
                tokio::time::sleep(SECOND).await;
                assert!(!panics, "the handler is broken");
                Err::<Response<TestBody>, _>("the service is broken")
            }
        });
        let service = layer(&larder()).layer(inner);
        let clients =
            (0..CLIENTS).map(|_| tokio::spawn(service.clone().oneshot(empty(request("/")))));
        let answers = join_all(clients.collect::<Vec<_>>()).await;
        assert_eq!(calls.load(Ordering::SeqCst), 4);
        let expected = if panics { 500 } else { 503 };
        let told = answers.iter().filter(
            |answer| matches!(answer, Ok(Ok(response)) if response.status().as_u16() == expected),
        );
        assert_eq!(told.count(), CLIENTS - 4, "panics: {panics}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_slower_than_its_lifetime_is_shared_with_its_waiters() {
    let rows: [&'static [(&'static str, &'static str)]; 4] = [
        &[("cache-control", "max-age=1")],
        &[("cache-control", "max-age=1"), ("etag", "\"a\"")],
        &[("cache-control", "s-maxage=1")],
        &[("expires", "Thu, 01 Jan 1970 00:00:11 GMT"), ("date", "Thu, 01 Jan 1970 00:00:10 GMT")],
    ];
    for fields in rows {
        let origin =
            Origin::asynchronous(ResponseCacheLayer::new(&larder()), move |_, call| async move {
                tokio::time::sleep(SECOND * 6 / 5).await;
                with(fields)(empty(request("/")), call)
            });
        let answers = at_once(&origin, |_| request("/")).await;
        let is_old = fields.iter().any(|(name, _)| *name == "date");
        // By its `Date` it was stale before the request was sent.
        assert_eq!(origin.calls() == 1, !is_old, "{fields:?}: {}", origin.calls());
        if !is_old {
            assert!(answers.iter().all(|(code, _, text)| *code == 200 && text == "answer 1"));
            origin.get("/").await;
            assert_eq!(origin.calls(), 2, "it is stale for later requests");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_that_needs_validation_each_time_is_not_shared() {
    for control in ["no-cache", "max-age=0", "max-age=0, must-revalidate"] {
        let origin =
            Origin::asynchronous(ResponseCacheLayer::new(&larder()), move |_, call| async move {
                tokio::time::sleep(SECOND).await;
                let mut response = numbered(empty(request("/")), call);
                response.headers_mut().insert("cache-control", control.parse().unwrap());
                response.headers_mut().insert("etag", format!("\"{call}\"").parse().unwrap());
                response
            });
        at_once(&origin, |_| request("/")).await;
        assert_eq!(origin.calls(), CLIENTS, "{control}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_origin_is_called_again_after_each_coalesce_timeout() {
    let origin = Origin::asynchronous(layer(&larder()), |request, call| async move {
        tokio::time::sleep(25 * SECOND).await;
        numbered(request, call)
    });
    let answers = at_once(&origin, |_| request("/")).await;
    assert_eq!(origin.calls(), 3);
    let first = answers.iter().filter(|(.., text)| text == "answer 1").count();
    assert_eq!(first, CLIENTS - 2, "all get the first answer, except the two other leaders");
}

#[tokio::test(start_paused = true)]
async fn an_origin_that_times_out_is_called_a_few_times() {
    let origin = Origin::asynchronous(layer(&larder()), |request, call| async move {
        tokio::time::sleep(1000 * SECOND).await;
        numbered(request, call)
    });
    let answers = at_once(&origin, |_| request("/")).await;
    assert!(origin.calls() <= 8, "{}", origin.calls());
    let timed_out = answers.iter().filter(|(code, ..)| *code == StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(timed_out.count(), CLIENTS - origin.calls());
}

fn broken(text: Option<&'static str>) -> TestBody {
    let frames = text.map(|text| Ok(Frame::data(Bytes::from_static(text.as_bytes()))));
    let error = Err(io::Error::other("the connection was closed"));
    let frames = frames.into_iter().chain([error]);
    StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
}

/// As [`broken`], but not ready at the first poll.
fn broken_later(text: Option<&'static str>) -> TestBody {
    let (frames, body) = mpsc::channel(2);
    tokio::spawn(async move {
        tokio::time::sleep(SECOND).await;
        if let Some(text) = text {
            frames.send(Ok(Frame::data(text.into()))).await.unwrap();
        }
        frames.send(Err(io::Error::other("the connection was closed"))).await.unwrap();
    });
    stream(body)
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_before_its_first_byte_is_an_error_of_its_origin() {
    for later in [false, true] {
        for stale in [false, true] {
            let layer = ResponseCacheLayer::new(&larder()).stale_if_error(MINUTE);
            let origin = Origin::new(layer, move |request, call| {
                let mut response = numbered(request, call);
                response.headers_mut().insert("cache-control", "max-age=10".parse().unwrap());
                if !stale || call > 1 {
                    *response.body_mut() = if later { broken_later(None) } else { broken(None) };
                }
                response
            });
            if stale {
                origin.get("/").await;
                tokio::time::advance(11 * SECOND).await;
            }
            let answer = origin.send(request("/")).await;
            let code = answer.status().as_u16();
            let (status, text) = read(answer).await;
            match stale {
                true => assert_eq!((code, &*text), (200, "answer 1"), "{status}"),
                false => assert_eq!(code, 502, "{status}: {text}"),
            }
            assert!(status.contains("detail=origin"), "{status}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_breaks_off_later_fails_for_its_client() {
    for later in [false, true] {
        let origin = Origin::new(layer(&larder()), move |_, _| {
            Response::new(if later { broken_later(Some("half")) } else { broken(Some("half")) })
        });
        let mut answer = origin.send(request("/")).await;
        assert_eq!(answer.status(), 200);
        let frame = answer.body_mut().frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "half");
        assert!(answer.body_mut().frame().await.unwrap().is_err());
    }
}
