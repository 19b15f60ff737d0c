"""The S3 endpoint: buckets are top-level directories of a volume, keys are paths below them.

Decisions are pure modules (`sigv4`, `chunked`, `checksums`, `conditions`, `ranges`, `listing`, `keys`, `multipart`,
`xml`, `errors`); `objects`, `uploads` and `keystore` carry them out on a `FileSystem`, in threads; `app` and `body` speak
HTTP, on the event loop.
"""
