"""A client of the server's HTTP API: a library over `requests`, and the command line `sentiment`.

    from client.inference import InferenceClient

    with InferenceClient("http://127.0.0.1:8080") as client:
        print(client.predict("Thank you for the great flight!").label)

| module | holds |
|---|---|
| `inference` | predictions |
| `management` | versions and workers, through TorchServe's management API |
| `rollout` | a new version in the old one's place, and back, without a lost request |
| `score` | a whole file of texts |
| `errors` | what any of them raises |
"""
