import pytest

from testproject import databases

URLS = [
    "postgresql://postgres:@127.0.0.1:5432/shop",
    "postgresql://user:p%40ss%2F@db.example.com/shop",
    "postgresql://postgres:@/postgres?host=%2Ftmp%2Fa%20socket",
    "mysql://root:@127.0.0.1:3306/shop",
    "sqlite:////tmp/shop.sqlite3",
    "sqlite:///shop.sqlite3",
]


@pytest.mark.parametrize("url", URLS)
def test_a_url_survives_the_trip_to_settings_and_back(url):
    assert databases.to_url(databases.from_url(url)) == url


def test_a_socket_directory_is_the_host():
    settings = databases.from_url("postgres://postgres@/shop?host=/run/postgresql")

    assert (settings["HOST"], settings["NAME"], settings["USER"]) == (
        "/run/postgresql",
        "shop",
        "postgres",
    )


def test_an_unknown_scheme_is_refused():
    with pytest.raises(ValueError, match="starts with one of postgres, postgresql"):
        databases.from_url("oracle://shop")


@pytest.mark.parametrize(
    ("url", "limited"),
    [
        ("redis://h:6379/0", "redis://h:6379/0?socket_timeout=5&socket_connect_timeout=5"),
        ("redis://h?socket_timeout=9", "redis://h?socket_timeout=9&socket_connect_timeout=5"),
    ],
)
def test_a_url_of_redis_gets_the_limits_that_it_lacks(url, limited):
    assert databases.with_timeouts(url) == limited
