//! A handle to an application.

use std::{fmt, future::Future, pin::Pin, sync::Arc};

use http::{Request, Response};
use http_body::Body;
use http_body_util::BodyExt as _;
use larder_http::BoxError;
use tower_service::Service;

type CallFuture = Pin<Box<dyn Future<Output = Result<Response<()>, BoxError>> + Send>>;

/// A handle to the outermost service of an application, such as an axum `Router` with all its layers. It is cheap to clone.
///
/// The application handles each call as it handles a request from the network, but there is no connection.
#[derive(Clone)]
pub struct AppHandle {
    call: Arc<dyn Fn(Request<()>) -> CallFuture + Send + Sync>,
}

impl AppHandle {
    /// Creates a handle to a service.
    pub fn new<S, B, R>(service: S) -> Self
    where
        S: Service<Request<B>, Response = Response<R>> + Clone + Send + Sync + 'static,
        S::Future: Send,
        S::Error: Into<BoxError>,
        B: Default + Send + 'static,
        R: Body + Send + 'static,
        R::Data: Send,
        R::Error: Into<BoxError>,
    {
        let call = move |request: Request<()>| -> CallFuture {
            let mut service = service.clone();
            Box::pin(async move {
                std::future::poll_fn(|cx| service.poll_ready(cx)).await.map_err(Into::into)?;
                let response = service.call(request.map(|()| B::default())).await;
                let (head, body) = response.map_err(Into::into)?.into_parts();
                let mut body = std::pin::pin!(body);
                // A response is stored once its body has ended.
                while let Some(frame) = body.frame().await {
                    frame.map_err(Into::into)?;
                }
                Ok(Response::from_parts(head, ()))
            })
        };
        Self { call: Arc::new(call) }
    }

    /// Creates a handle to a `Router` of axum, or to any other service of axum's request type.
    #[cfg(feature = "axum")]
    pub fn axum<S, R>(service: S) -> Self
    where
        S: Service<Request<axum_core::body::Body>, Response = Response<R>>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
        S::Error: Into<BoxError>,
        R: Body + Send + 'static,
        R::Data: Send,
        R::Error: Into<BoxError>,
    {
        Self::new::<S, axum_core::body::Body, R>(service)
    }

    /// Sends a request, reads the body of its response to the end, and returns the head.
    ///
    /// # Errors
    ///
    /// The error of the service or of the body.
    pub async fn call(&self, request: Request<()>) -> Result<Response<()>, BoxError> {
        (self.call)(request).await
    }
}

impl fmt::Debug for AppHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppHandle").finish_non_exhaustive()
    }
}
