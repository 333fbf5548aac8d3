"""Sorts of tools for evaluation only: no sample with them is trained on."""

from erniechat.mini.tools.family import Family, parameter

FAMILIES: dict[str, Family] = {
    "flight": Family(
        ["find_flights", "search_flights", "flights", "flight_search"],
        ["Find flights between two cities", "Flight search"],
        [
            parameter("a", "city", "origin departure from", "City of departure"),
            parameter("b", "city", "destination arrival to", "City of arrival"),
            parameter("day", "day", "day date", "Day of travel", optional=True),
        ],
        [
            "Find flights from {a} to {b}.",
            "I want to fly from {a} to {b} {day}",
            "flights {a} to {b}",
        ],
        [
            lambda rng, facts, given: {
                "flights": rng.randrange(1, 20),
                "price": rng.randrange(50, 900),
            }
        ],
        "Flights from {a} to {b}",
    ),
    "phone": Family(
        ["find_contact", "phone_book", "get_phone_number", "contacts"],
        ["Look up the phone number of a person", "Phone book"],
        [parameter("who", "person", "name person contact", "Name of the person")],
        ["What is the phone number of {who}?", "Find {who} in my phone book.", "number of {who}"],
        [lambda rng, facts, given: {"number": rng.randrange(100000, 999999)}],
        "Phone number of {who}",
    ),
    "count": Family(
        ["population", "get_population", "inhabitants", "count_people"],
        ["Number of people living in a country", "Population of a country"],
        [parameter("c", "country", "country name state", "Country")],
        ["What is the population of {c}?", "How many people live in {c}?", "population of {c}"],
        [lambda rng, facts, given: {"population": rng.randrange(1000, 99999999)}],
        "Population of {c}",
    ),
}
