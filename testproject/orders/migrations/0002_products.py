from django.db import migrations

PRODUCTS = [
    {"slug": "tea", "name": "Tin of tea", "price": 8},
    {"slug": "pot", "name": "Tea pot", "price": 40},
    {"slug": "lamp", "name": "Moon lamp", "price": 60, "in_stock": False},
    {"slug": "clock", "name": "Grandfather clock", "price": 950},
]


def fill_the_shelves(apps, schema_editor):
    products = apps.get_model("orders", "Product").objects.using(schema_editor.connection.alias)
    products.bulk_create(products.model(**product) for product in PRODUCTS)


class Migration(migrations.Migration):
    dependencies = [("orders", "0001_initial")]
    operations = [migrations.RunPython(fill_the_shelves, migrations.RunPython.noop)]
